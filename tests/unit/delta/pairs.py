"""Pairs of tiny models of one shape and different weights."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch

from lensprune.models import as_hooked_model, load_model
from lensprune.models.base import HookedModel
from lensprune.models.bridge import BridgeModel
from lensprune.replacement import ModelPair, model_pair
from lensprune.replacement.tensors import plain_attention
from tests.families import byte_tokenizer, hf_model

__all__ = ["fresh", "hooked_logits", "plain_logits", "state", "tiny_pair"]


def fresh(family: str, seed: int, **overrides: Any) -> HookedModel:
    """A model of its own; norms differ between seeds too."""
    folder = Path(mkdtemp()) / f"{family}-{seed}"
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


def _inputs() -> tuple[torch.Tensor, torch.Tensor]:
    ids = (torch.arange(2 * 11) * 7 + 5).reshape(2, 11) % 250
    return ids, torch.arange(11).expand(2, 11)


def hooked_logits(model: BridgeModel, hooks: Any = ()) -> torch.Tensor:
    ids, positions = _inputs()
    with torch.no_grad(), model.hooks(list(hooks)):
        return model.forward(ids, torch.ones_like(ids), positions)


def plain_logits(model: BridgeModel) -> torch.Tensor:
    ids, positions = _inputs()
    with torch.no_grad(), plain_attention(model) as raw:
        return raw(input_ids=ids, attention_mask=torch.ones_like(ids), position_ids=positions, use_cache=False).logits


def state(model: BridgeModel) -> dict[str, torch.Tensor]:
    """Copies of everything that the bridge and its twin hold."""
    bridge: Any = model.module
    raw: Any = model.raw_model
    named = [*raw.named_parameters(), *((f"bridge:{n}", p) for n, p in bridge.named_parameters())]
    return {name: parameter.detach().clone() for name, parameter in named}
