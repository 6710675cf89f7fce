"""Pairs of tiny models of one shape and different weights."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from lensprune.models import as_hooked_model, load_model
from lensprune.models.base import HookedModel
from lensprune.models.bridge import BridgeModel
from lensprune.replacement import ModelPair, model_pair
from lensprune.replacement.tensors import plain_attention
from tests.helpers.families import byte_tokenizer, hf_model
from tests.helpers.logits import logits_under_hooks, plain_logits
from tests.helpers.tiny_models import scratch

__all__ = ["fresh", "pair_logits", "state", "tiny_pair", "twin_logits"]


def fresh(family: str, seed: int, **overrides: Any) -> HookedModel:
    """A model of its own; norms differ between seeds too."""
    folder = scratch(f"{family}-{seed}")
    model = hf_model(family, seed, **overrides)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return as_hooked_model(load_model(folder, self_check=False))


@cache
def tiny_pair(family: str) -> ModelPair:
    return model_pair(fresh(family, 0), fresh(family, 1))


_IDS = (torch.arange(2 * 11) * 7 + 5).reshape(2, 11) % 250


def pair_logits(model: BridgeModel, hooks: Any = ()) -> torch.Tensor:
    """Of two rows, through the bridge."""
    return logits_under_hooks(model, _IDS, hooks)


def twin_logits(model: BridgeModel) -> torch.Tensor:
    """Of the same rows, through the bridge's hook-free twin."""
    with plain_attention(model) as raw:
        return plain_logits(raw, _IDS)


def state(model: BridgeModel) -> dict[str, torch.Tensor]:
    """Copies of everything that the bridge and its twin hold."""
    bridge: Any = model.module
    raw: Any = model.raw_model
    named = [*raw.named_parameters(), *((f"bridge:{n}", p) for n, p in bridge.named_parameters())]
    return {name: parameter.detach().clone() for name, parameter in named}
