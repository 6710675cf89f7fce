"""Choose which requests and variants are decoded together, within the limits on rows and on keys and values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch

from lensprune.ablation.variants import Variant
from lensprune.engine.decoding.prompts import PromptSet
from lensprune.engine.edits import first_layer
from lensprune.engine.limits import DecodeLimits
from lensprune.engine.tree import chunk_sequences
from lensprune.models.base import ModelFacts
from lensprune.protocols.requests import GenerateRequest

__all__ = ["ChunkSize", "group_variants", "kv_bytes_per_token", "request_chunks"]

SHARING_VARIANTS = 16
"""With this many variants per chunk, the clean model's pass is a small part of the total."""


def kv_bytes_per_token(facts: ModelFacts) -> int:
    """Bytes of one token's keys and values at one layer."""
    return 2 * facts.n_key_value_heads * facts.d_head * getattr(torch, facts.dtype).itemsize


class ChunkSize:
    """How many keys and values a chunk of requests needs while it is decoded under several variants at once."""

    def __init__(self, facts: ModelFacts, requests: Sequence[GenerateRequest]) -> None:
        prompts = PromptSet.of([request.context_ids for request in requests])
        generated = max(request.max_new_tokens for request in requests)
        prefixes = prompts.shared_tokens
        self._facts = facts
        place = {prompt: i for i, prompt in enumerate(prompts.prompts)}
        blocks = prompts.block_of[[place[request.context_ids] for request in requests]]
        self._own = int(np.array(prompts.widths)[blocks].sum()) + prefixes
        self._clean = len(prompts) * prompts.width + prefixes
        self._generated = len(requests) * generated

    def kv_bytes(self, variants: Sequence[Variant]) -> int:
        """Upper bound in bytes: the clean model's prompts up to the deepest layer that a variant needs, each variant's
        own above its first changed layer, and generated tokens at every layer, assuming that no two variants agree."""
        n_layers = self._facts.n_layers
        firsts = [first_layer(v, n_layers) for v in variants]
        layers = sum(max(0, n_layers - 1 - first) for first in firsts)
        clean = min(n_layers, max(firsts) + 1)
        tokens = layers * self._own + clean * self._clean + n_layers * len(firsts) * self._generated
        return kv_bytes_per_token(self._facts) * tokens


def request_chunks(
    requests: dict[int, GenerateRequest], variants: Sequence[Variant], facts: ModelFacts, limits: DecodeLimits
) -> list[dict[int, GenerateRequest]]:
    """Split requests, sorted by context, so that each chunk fits with at least one variant."""
    if not requests:
        return []
    size = max(1, limits.rows // min(len(variants), SHARING_VARIANTS))
    while True:
        chunks = list(_chunks_of(requests, size, limits.tokens))
        sizes = [ChunkSize(facts, list(chunk.values())) for chunk in chunks]
        worst = max(chunk.kv_bytes([v]) for chunk in sizes for v in variants)
        if worst <= limits.kv_bytes or size == 1:
            return chunks
        size = min(size, max(map(len, chunks))) // 2 or 1


def _chunks_of(
    requests: dict[int, GenerateRequest], size: int, max_tokens: int
) -> Iterator[dict[int, GenerateRequest]]:
    by_context: dict[tuple[int, ...], list[int]] = {}
    for index, request in requests.items():
        by_context.setdefault(request.context_ids, []).append(index)
    for sequences in chunk_sequences(list(by_context), max_tokens):
        ordered = [index for sequence in sequences for index in by_context[sequence]]
        pieces = -(-len(ordered) // size)
        # Pieces of equal size: a small last one would waste steps.
        bounds = [len(ordered) * piece // pieces for piece in range(pieces + 1)]
        for low, high in pairwise(bounds):
            yield {index: requests[index] for index in ordered[low:high]}


def group_variants(
    variants: Sequence[Variant], facts: ModelFacts, chunks: Sequence[dict[int, GenerateRequest]], limits: DecodeLimits
) -> Iterator[list[Variant]]:
    """Split variants, in their order, so that each group fits with every chunk; a group has at least one variant."""
    if not chunks:
        yield from ([variant] for variant in variants)
        return
    most = max(len(chunk) for chunk in chunks)
    sizes = [ChunkSize(facts, list(chunk.values())) for chunk in chunks]
    group: list[Variant] = []
    for variant in variants:
        grown = [*group, variant]
        fits = len(grown) * most <= limits.rows and all(size.kv_bytes(grown) <= limits.kv_bytes for size in sizes)
        if group and not fits:
            yield group
            grown = [variant]
        group = grown
    if group:
        yield group
