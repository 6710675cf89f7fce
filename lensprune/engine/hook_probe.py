"""What a few rows tell of a user's own hooks before a variant runs: whether they change anything, and row by row."""

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
from lensprune.models.base import HookedModel, HookFunction, NamedHook
from lensprune.precision import widened
from lensprune.protocols.requests import LoglikelihoodRequest, Request

__all__ = ["rows_are_independent", "warn_of_inert_hooks"]

_ROWS = 3
_NOISE = 10.0
"""A hook's rows may differ by so many times what the model's own differ between a batch and one by one."""
_LEAST = 1e-3

_Row = tuple[tuple[int, ...], str | None]
"""A row's tokens, and its item."""


def rows_are_independent(
    model: HookedModel, variant: Variant, requests: Sequence[Request], reference: ReferenceActivations | None
) -> bool:
    """Whether a variant with hooks of the user's own gives up to three rows of one length the same logits together and
    one by one. Warns, with the hooks' names, where it doesn't, and of hooks that change nothing.

    Args:
        requests: at least one; the rows are chosen among what they read.
    """
    rows = _rows(requests)
    without = replace(variant, hooks=())

    def apart(chosen: Variant) -> Float[torch.Tensor, "row d_vocab"]:
        return torch.cat([_logits(model, chosen, [row], reference) for row in rows])

    changed, clean = _logits(model, variant, rows, reference), _logits(model, without, rows, reference)
    warn_of_inert_hooks(model, variant, requests, reference)
    if len(rows) == 1 or torch.equal(changed, clean):
        return True
    noise = (clean - apart(without)).abs().max().nan_to_num()
    if (changed - apart(variant)).abs().max().nan_to_num() <= _NOISE * noise + _LEAST:
        return True
    warnings.warn(
        f"{variant.name}: what the hooks at {_named(own_hooks(variant))} do to a prompt depends on the others of its "
        "batch, or on chance: this variant runs one prompt at a time",
        stacklevel=2,
    )
    return False


def warn_of_inert_hooks(
    model: HookedModel, variant: Variant, requests: Sequence[Request], reference: ReferenceActivations | None
) -> None:
    """Warn, with their names, of hooks of the user's own without whose changes the logits of up to three rows are the
    same, bit for bit.

    A hook that is left out still runs, on a copy, since others may need what it reads.
    """
    if not variant.hooks:
        return
    rows, own = _rows(requests), own_hooks(variant)
    changed = _logits(model, variant, rows, reference)
    inert: set[int] = set()
    for i in range(len(own)):
        # Together with those found before: of two hooks that do the same, one is needed.
        without = [(name, _undone(hook) if j in inert | {i} else hook) for j, (name, hook) in enumerate(own)]
        if torch.equal(changed, _logits(model, replace(variant, hooks=tuple(without)), rows, reference)):
            inert.add(i)
    if inert:
        warnings.warn(
            f"{variant.name}: hooks at {_named([own[i] for i in sorted(inert)])} ran and changed no logit of "
            f"{len(rows)} prompt{'s' if len(rows) > 1 else ''}: to change something, a hook must return the new "
            "activation, and the model must read it there",
            stacklevel=2,
        )


def _rows(requests: Sequence[Request]) -> list[_Row]:
    """Up to `_ROWS` different rows of one length, the most common."""
    by_length: dict[int, dict[_Row, None]] = defaultdict(dict)
    for request in requests:
        tokens = request.input_ids if isinstance(request, LoglikelihoodRequest) else request.context_ids
        by_length[len(tokens)][tokens, request.item] = None
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
    tokens = torch.tensor([row for row, _ in rows], device=model.facts.device)
    positions = torch.arange(tokens.shape[1], device=tokens.device).expand(len(tokens), -1)
    state = BatchState(positions, tokens, tuple(item for _, item in rows))
    hooks = VariantHooks(model, variant, state, reference)
    with torch.inference_mode(), model.hooks(hooks.named):
        return widened(model.forward(tokens, torch.ones_like(tokens), positions, logits_to_keep=1)[:, -1])
