"""Run a model from one of its layers on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from lensprune.models.base import HookedModel, NamedHook

__all__ = ["resumed_at"]


class _PassThrough(torch.nn.Module):
    """Stands where a block was and hands its input on; anything else that is asked of it, the block answers."""

    def __init__(self, block: torch.nn.Module) -> None:
        super().__init__()
        object.__setattr__(self, "_block", block)

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_block"), name)

    def forward(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return hidden


@contextmanager
def resumed_at(model: HookedModel, layer: int, residual: torch.Tensor) -> Iterator[list[NamedHook]]:
    """Leave out the blocks below `layer` and begin with `residual` [row, pos, d_model] in front of it.

    Gives the hook that puts `residual` in; it must come before all others of the forward pass, which see `residual`
    there. Only for runs without a key/value cache. Blocks are replaced in place, because models index their layers.
    """
    module: Any = model.module
    blocks = module.blocks._modules
    kept = {str(index): blocks[str(index)] for index in range(layer)}

    def start(activation: torch.Tensor, hook: Any) -> torch.Tensor:
        return residual

    try:
        blocks.update({index: _PassThrough(block) for index, block in kept.items()})
        yield [(f"blocks.{layer}.hook_resid_pre", start)]
    finally:
        blocks.update(kept)
