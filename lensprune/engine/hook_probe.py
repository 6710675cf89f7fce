"""What a few rows tell of a user's own hooks before a variant runs: whether they change anything, and row by row."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Sequence

import torch
from jaxtyping import Float

from lensprune.ablation.hooks import BatchState, VariantHooks
from lensprune.ablation.reference import ReferenceActivations
from lensprune.ablation.variants import Variant
from lensprune.models.base import HookedModel

__all__ = ["rows_are_independent"]

_ROWS = 3
_NOISE = 10.0
"""A hook's rows may differ by so many times what the model's own differ between a batch and one by one."""
_LEAST = 1e-3


def rows_are_independent(
    model: HookedModel, variant: Variant, inputs: Sequence[tuple[int, ...]], reference: ReferenceActivations | None
) -> bool:
    """Whether a variant with hooks of the user's own gives up to three rows of one length the same logits together and
    one by one. Warns, with the hooks' names, where it doesn't, and where the logits are those without the hooks.

    Args:
        inputs: the rows to choose from, all different.
    """
    by_length: dict[int, list[tuple[int, ...]]] = defaultdict(list)
    for row in inputs:
        by_length[len(row)].append(row)
    rows = max(by_length.values(), key=len)[:_ROWS]
    names = ", ".join(dict.fromkeys(name for name, _ in variant.hooks))
    without = Variant(variant.name, variant.ablations)

    def apart(chosen: Variant) -> Float[torch.Tensor, "row d_vocab"]:
        return torch.cat([_logits(model, chosen, [row], reference) for row in rows])

    changed, clean = _logits(model, variant, rows, reference), _logits(model, without, rows, reference)
    if torch.equal(changed, clean):
        warnings.warn(
            f"{variant.name}: hooks at {names} ran and changed no logit of {len(rows)} prompt"
            f"{'s' if len(rows) > 1 else ''}: a hook must return the new activation, and the model must read it there",
            stacklevel=2,
        )
        return True
    if len(rows) == 1:
        return True
    noise = (clean - apart(without)).abs().max().nan_to_num()
    if (changed - apart(variant)).abs().max().nan_to_num() <= _NOISE * noise + _LEAST:
        return True
    warnings.warn(
        f"{variant.name}: what the hooks at {names} do to a prompt depends on the others of its batch, or on chance: "
        "this variant runs one prompt at a time",
        stacklevel=2,
    )
    return False


def _logits(
    model: HookedModel, variant: Variant, rows: Sequence[tuple[int, ...]], reference: ReferenceActivations | None
) -> Float[torch.Tensor, "row d_vocab"]:
    tokens = torch.tensor(rows, device=model.facts.device)
    positions = torch.arange(tokens.shape[1], device=tokens.device).expand(len(tokens), -1)
    hooks = VariantHooks(model, variant, BatchState(positions, tokens), reference)
    with torch.inference_mode(), model.hooks(hooks.named):
        return model.forward(tokens, torch.ones_like(tokens), positions, logits_to_keep=1)[:, -1].float()
