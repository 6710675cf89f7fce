"""Check custom hooks on a few rows before a variant runs: that they change something, and treat rows separately."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float

from lensprune.ablation.hooks import BatchState, VariantHooks, own_hooks
from lensprune.ablation.reference import ReferenceActivations
from lensprune.ablation.variants import Variant
from lensprune.engine.marks import Marks
from lensprune.models.base import HookedModel, HookFunction, NamedHook
from lensprune.precision import widened
from lensprune.protocols.requests import LoglikelihoodRequest, Request

__all__ = ["rows_are_independent", "warn_of_inert_hooks"]

_ROWS = 3
_NOISE = 10.0
"""Tolerance for a hook's rows, as a multiple of the model's own differences between batched and single rows."""
_MIN_CHANGE = 1e-3

_Row = tuple[tuple[int, ...], tuple[int, ...], str | None]
"""A row's tokens, their `Marks`, and its item."""


def rows_are_independent(
    model: HookedModel, variant: Variant, requests: Sequence[Request], reference: ReferenceActivations | None
) -> bool:
    """Whether a variant with custom hooks gives up to three rows of equal length the same logits in a batch as one by
    one. Warns, naming the hooks, if it doesn't, and about hooks that change nothing.

    Args:
        requests: at least one; the rows are chosen from their inputs.
    """
    rows = _rows(requests, Marks(model, [variant]))
    without = replace(variant, hooks=())

    def apart(chosen: Variant) -> Float[torch.Tensor, "row d_vocab"]:
        return torch.cat([_logits(model, chosen, [row], reference) for row in rows])

    changed, clean = _logits(model, variant, rows, reference), _logits(model, without, rows, reference)
    warn_of_inert_hooks(model, variant, requests, reference)
    if len(rows) == 1 or torch.equal(changed, clean):
        return True
    noise = (clean - apart(without)).abs().max().nan_to_num()
    if (changed - apart(variant)).abs().max().nan_to_num() <= _NOISE * noise + _MIN_CHANGE:
        return True
    warnings.warn(
        f"{variant.name}: what the hooks at {_named(own_hooks(variant))} do to a prompt depends on the rest of its "
        "batch, or is random: this variant runs one prompt at a time",
        stacklevel=2,
    )
    return False


def warn_of_inert_hooks(
    model: HookedModel, variant: Variant, requests: Sequence[Request], reference: ReferenceActivations | None
) -> None:
    """Warn about custom hooks whose changes leave the logits of up to three rows bit-for-bit unchanged, naming them.

    A hook whose change is left out still runs, on a copy, since others may need what it reads.
    """
    if not variant.hooks:
        return
    rows, hooks = _rows(requests, Marks(model, [variant])), own_hooks(variant)
    changed = _logits(model, variant, rows, reference)
    inert: set[int] = set()
    for i in range(len(hooks)):
        # Together with the inert ones so far: of two hooks that do the same, one is needed.
        without = [(name, _undone(hook) if j in inert | {i} else hook) for j, (name, hook) in enumerate(hooks)]
        if torch.equal(changed, _logits(model, replace(variant, hooks=tuple(without)), rows, reference)):
            inert.add(i)
    if inert:
        warnings.warn(
            f"{variant.name}: hooks at {_named([hooks[i] for i in sorted(inert)])} ran and changed no logit of "
            f"{len(rows)} prompt{'s' if len(rows) > 1 else ''}: to change something, a hook must return the new "
            "activation, and the model must read it there",
            stacklevel=2,
        )


def _rows(requests: Sequence[Request], marks: Marks) -> list[_Row]:
    """Up to `_ROWS` different rows of equal length, the most common one."""
    by_length: dict[int, dict[_Row, None]] = defaultdict(dict)
    for request in requests:
        tokens = request.input_ids if isinstance(request, LoglikelihoodRequest) else request.context_ids
        by_length[len(tokens)][tokens, marks.of(request), request.item] = None
    return max((list(rows) for rows in by_length.values()), key=len)[:_ROWS]


def _named(hooks: Sequence[NamedHook]) -> str:
    return ", ".join(dict.fromkeys(name for name, _ in hooks))


def _undone(function: HookFunction) -> HookFunction:
    def undone(activation: torch.Tensor, hook: Any) -> None:
        function(activation.clone(), hook)

    return undone


def _logits(
    model: HookedModel, variant: Variant, rows: Sequence[_Row], reference: ReferenceActivations | None
) -> Float[torch.Tensor, "row d_vocab"]:
    tokens = torch.tensor([row for row, _, _ in rows], device=model.facts.device)
    positions = torch.arange(tokens.shape[1], device=tokens.device).expand(len(tokens), -1)
    masks = Marks(model, [variant]).masks([row_marks for _, row_marks, _ in rows], tokens)
    state = BatchState(positions, tokens, tuple(item for _, _, item in rows), masks)
    hooks = VariantHooks(model, variant, state, reference)
    with torch.inference_mode(), model.hooks(hooks.named):
        return widened(model.forward(tokens, torch.ones_like(tokens), positions, logits_to_keep=1)[:, -1])
