"""Greedy decoding of many variants on many prompts in one step per token: the forked executor's way to generate."""

from lensprune.engine.decoding.checkpoint import Checkpoint, Saved
from lensprune.engine.decoding.decoder import GroupDecoder
from lensprune.engine.decoding.groups import ChunkSize, group_variants, request_chunks

__all__ = ["Checkpoint", "ChunkSize", "GroupDecoder", "Saved", "group_variants", "request_chunks"]
