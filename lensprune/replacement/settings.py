"""One model's chat format, end tokens and generation config for both models of a pair."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from lensprune.models.bridge import BridgeModel
from lensprune.replacement.pair import ModelPair
from lensprune.replacement.parts import Host

__all__ = ["decoded_alike", "prompted"]


def prompted(pair: ModelPair, whose: Host) -> BridgeModel:
    """The model whose prompts both get, with the shorter context of the two: prompts that fit it fit both."""
    model, n_ctx = pair.host(whose), min(pair.base.facts.n_ctx, pair.distilled.facts.n_ctx)
    if model.facts.n_ctx == n_ctx:
        return model
    shortened = copy.copy(model)
    shortened.facts = replace(model.facts, n_ctx=n_ctx)
    return shortened


@contextmanager
def decoded_alike(pair: ModelPair, whose: Host) -> Iterator[None]:
    """Context in which both models end texts, and change logits before a token is chosen, as `whose` does.

    Without it the base with every part of the distilled model could still answer differently from the distilled model.
    """
    here, there = (host.module.original_model for host in (pair.host(whose), pair.host(_other(whose))))
    before: tuple[Any, Any] = (there.generation_config, there.config.eos_token_id)
    there.generation_config, there.config.eos_token_id = here.generation_config, here.config.eos_token_id
    try:
        yield
    finally:
        there.generation_config, there.config.eos_token_id = before


def _other(host: Host) -> Host:
    return "distilled" if host == "base" else "base"
