"""Logits of one text, with and without lensprune."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float

from lensprune.ablation import BatchState, Variant, VariantHooks
from lensprune.ablation.variants import as_variants
from lensprune.engine.marks import Marks
from lensprune.models.base import HookedModel, NamedHook
from lensprune.protocols.requests import GenerateRequest

__all__ = ["hooked_logits", "last_logits", "logits_under_hooks", "plain_logits"]

Logits = Float[torch.Tensor, "batch pos d_vocab"]


def plain_logits(hf: Any, ids: Sequence[int] | torch.Tensor) -> Logits:
    """What a transformers model gives for `ids`, one row or several of one length."""
    rows = torch.atleast_2d(torch.as_tensor(ids)).to(next(hf.parameters()).device)
    with torch.no_grad():
        return hf(input_ids=rows, attention_mask=torch.ones_like(rows), use_cache=False).logits


def logits_under_hooks(
    model: HookedModel, ids: Sequence[int] | torch.Tensor, hooks: Sequence[NamedHook] = ()
) -> Logits:
    """What the hooked model gives for `ids` while `hooks` are on."""
    rows = torch.atleast_2d(torch.as_tensor(ids)).to(model.facts.device)
    positions = torch.arange(rows.shape[1], device=rows.device).expand(len(rows), -1)
    with torch.no_grad(), model.hooks(list(hooks)):
        return model.forward(rows, torch.ones_like(rows), positions)


def hooked_logits(model: HookedModel, ids: Sequence[int] | torch.Tensor, variant: Variant) -> Logits:
    """What the hooked model gives for `ids` under `variant`, whose hooks must all fire."""
    size = torch.atleast_2d(torch.as_tensor(ids)).shape[1]
    hooks = VariantHooks(model, variant, BatchState(torch.arange(size, device=model.facts.device)[None]))
    logits = logits_under_hooks(model, ids, hooks.named)
    hooks.check_fired()
    return logits


def last_logits(model: HookedModel, prompt: Sequence[int], *variants: str) -> Float[torch.Tensor, "variant d_vocab"]:
    """What the hooked model gives after `prompt` under each of the variants, which may have positions."""
    rows, tokens = [], torch.tensor([list(prompt)], device=model.facts.device)
    positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
    for variant in as_variants(list(variants)):
        marks = Marks(model, [variant])
        masks = marks.masks([marks.of(GenerateRequest(tuple(prompt), (), 1))], tokens)
        hooks = VariantHooks(model, variant, BatchState(positions, tokens, (None,), masks))
        rows.append(logits_under_hooks(model, tokens, hooks.named)[0, -1])
    return torch.stack(rows)
