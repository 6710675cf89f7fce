"""Attention edges: the weights from one token (the destination) to another (the source).

Cutting edges is what scores of −∞ before the softmax do (attention knockout, Geva et al. 2023, arXiv 2304.14767): the
weights are zero, and the destination's other weights are divided by what is left of their sum. A destination all of
whose sources are cut has no weights, so its heads output zero.
"""

from __future__ import annotations

import warnings
from typing import Any
from weakref import WeakSet

import torch
from jaxtyping import Bool, Float

from lensprune.errors import UserError
from lensprune.models.base import HookedModel, HookFunction
from lensprune.precision import widened

__all__ = ["check_pattern", "pattern_site", "without_edges"]

_TOKENS = 4
_ROUNDING = 0.01
"""How far a row of a pattern may be from a sum of 1: bfloat16 rounds each weight by up to 0.4%."""

_CHECKED: WeakSet[torch.nn.Module] = WeakSet()


def pattern_site(layer: int) -> str:
    """Hook name of a block's attention pattern, [batch, head, query, key]."""
    return f"blocks.{layer}.attn.hook_pattern"


def without_edges(
    pattern: Float[torch.Tensor, "batch head query key"],
    heads: list[int] | None,
    destinations: Bool[torch.Tensor, "batch query"],
    sources: Bool[torch.Tensor, "batch key"],
) -> Float[torch.Tensor, "batch head query key"]:
    """The pattern without weights from `destinations` to `sources`, each row scaled to a sum of 1 again.

    Rows that lose no weight stay the same bit for bit; rows that lose all are zero, also where what is left is too
    small for the pattern's dtype.

    Args:
        heads: only these; ``None``: all.
    """
    before = pattern if heads is None else pattern[:, heads]
    kept = before.masked_fill(destinations[:, None, :, None] & sources[:, None, None, :], 0)
    total = widened(kept).sum(-1, keepdim=True)
    scaled = (widened(kept) / total.masked_fill(total == 0, 1)).to(before.dtype)
    new = torch.where((kept != before).any(-1, keepdim=True), scaled, before)
    if heads is None:
        return new
    changed = pattern.clone()
    changed[:, heads] = new
    return changed


def check_pattern(model: HookedModel) -> None:
    """Check, once per model, that in every layer heads' results are the hooked pattern times the values.

    Raises:
        UserError: the model doesn't read the pattern at its hook point, or its rows don't sum to 1, since part of the
            attention goes to a learned sink.
    """
    if model.module in _CHECKED:
        return
    unread: set[int] = set()
    short: set[int] = set()

    def emptied(layer: int) -> HookFunction:
        def hook(pattern: torch.Tensor, hook: Any) -> torch.Tensor:
            if bool(((widened(pattern).sum(-1) - 1).abs() > _ROUNDING).any()):
                short.add(layer)
            return torch.zeros_like(pattern)

        return hook

    def look(layer: int) -> HookFunction:
        def hook(z: torch.Tensor, hook: Any) -> None:
            if bool((z != 0).any()):
                unread.add(layer)

        return hook

    hooks = [(pattern_site(layer), emptied(layer)) for layer in range(model.facts.n_layers)]
    hooks += [(f"blocks.{layer}.attn.hook_z", look(layer)) for layer in range(model.facts.n_layers)]
    tokens = torch.zeros(1, _TOKENS, dtype=torch.long, device=model.facts.device)
    positions = torch.arange(_TOKENS, device=tokens.device)[None]
    with torch.no_grad(), model.hooks(hooks), warnings.catch_warnings():
        # TransformerLens warns of an edit that the model doesn't read; the error below says so already.
        warnings.filterwarnings("ignore", "A hook on .* returned a modified tensor")
        model.forward(tokens, torch.ones_like(tokens), positions)
    why = ""
    if unread:
        why = f"layer {min(unread)} does not multiply its values by the weights at attn.hook_pattern"
    elif short:
        why = f"the attention weights of layer {min(short)} don't sum to 1 (an attention sink takes the rest)"
    if why:
        raise UserError(f"cut does not work with {model.facts.architecture}: {why}; use zero, mean or resample")
    _CHECKED.add(model.module)
