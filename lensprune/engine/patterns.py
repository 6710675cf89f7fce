"""Read attention patterns as they are computed, without storing them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int

from lensprune.models.base import HookedModel, HookFunction, NamedHook

__all__ = ["PatternReader", "pattern_hooks", "read_patterns"]

PatternReader = Callable[[int, Float[torch.Tensor, "row head query key"]], None]
"""Called with a layer and its attention weights after the softmax."""


def pattern_hooks(model: HookedModel, read: PatternReader) -> list[NamedHook]:
    """Hooks that pass every layer's pattern to `read`."""

    def reader(layer: int) -> HookFunction:
        def hook(pattern: torch.Tensor, hook: Any) -> None:
            read(layer, pattern.detach())

        return hook

    return [(f"blocks.{layer}.attn.hook_pattern", reader(layer)) for layer in range(model.facts.n_layers)]


def read_patterns(
    model: HookedModel, rows: Int[torch.Tensor, "row pos"] | Sequence[Sequence[int]], read: PatternReader
) -> None:
    """Run rows of equal length in one unpadded forward pass and pass every layer's pattern to `read`."""
    tokens = torch.as_tensor(rows, device=model.facts.device)
    positions = torch.arange(tokens.shape[1], device=tokens.device).expand(len(tokens), -1)
    with torch.inference_mode(), model.hooks(pattern_hooks(model, read)):
        model.forward(tokens, torch.ones_like(tokens), positions, logits_to_keep=1)
