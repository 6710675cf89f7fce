"""Run a model from a given layer on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch

from lensprune.models.base import HookedModel, NamedHook

__all__ = ["resumed_at"]


_TUPLES: WeakKeyDictionary[torch.nn.Module, bool] = WeakKeyDictionary()


class _PassThrough(torch.nn.Module):
    """Replaces a block and returns its input, in a tuple if the block returns one; every other attribute is the
    block's."""

    def __init__(self, block: torch.nn.Module, returns_tuple: bool) -> None:
        super().__init__()
        object.__setattr__(self, "_block", block)
        object.__setattr__(self, "_returns_tuple", returns_tuple)

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_block"), name)

    def forward(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor | tuple[torch.Tensor]:
        return (hidden,) if self._returns_tuple else hidden


def _returns_tuple(model: HookedModel) -> bool:
    """Whether the model's blocks return tuples, of which it takes the first (GPT-Neo, Falcon, Bloom)."""
    module: Any = model.module
    if module not in _TUPLES:

        def look(block: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
            _TUPLES[module] = isinstance(output, tuple)

        token = torch.zeros(1, 1, dtype=torch.long, device=model.facts.device)
        handle = module.blocks[0].register_forward_hook(look)
        try:
            with torch.no_grad():
                model.forward(token, torch.ones_like(token), token, logits_to_keep=1)
        finally:
            handle.remove()
    return _TUPLES[module]


@contextmanager
def resumed_at(model: HookedModel, layer: int, residual: torch.Tensor) -> Iterator[list[NamedHook]]:
    """Leave out the blocks below `layer` and start from `residual` [row, pos, d_model] before it.

    Yields the hook that inserts `residual`; it must come before all other hooks of the forward pass, so that they see
    `residual`. Only for runs without a key/value cache. Blocks are replaced in place, because models index their
    layers.
    """
    module: Any = model.module
    returns_tuple = _returns_tuple(model)
    blocks = module.blocks._modules
    kept = {str(index): blocks[str(index)] for index in range(layer)}

    def start(activation: torch.Tensor, hook: Any) -> torch.Tensor:
        return residual

    try:
        blocks.update({index: _PassThrough(block, returns_tuple) for index, block in kept.items()})
        yield [(f"blocks.{layer}.hook_resid_pre", start)]
    finally:
        blocks.update(kept)
