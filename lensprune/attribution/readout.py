"""Logits from the residual stream after the last layer, through the model's own head, and its linear part."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float

from lensprune.attribution.runs import edit_hook, run_from
from lensprune.errors import LensPruneError
from lensprune.models.base import HookedModel
from lensprune.models.weights import final_norm, unembedding
from lensprune.precision import doubled

__all__ = ["check_read_out", "linear_read_out", "read_out", "tolerance_of"]

_UNSATURATED = 0.9
"""Share of the cap up to which a capped logit still determines its uncapped value."""


def tolerance_of(dtype: torch.dtype) -> float:
    """Largest relative error of a sum or product that rounding can explain in this dtype."""
    return {torch.float64: 1e-5, torch.float32: 1e-3}.get(dtype, 5e-2)


def read_out(
    model: HookedModel, residual: Float[torch.Tensor, "*rows d_model"]
) -> Float[torch.Tensor, "*rows d_vocab"]:
    """Logits of residual vectors through the model's own head: final norm, unembedding, and the scale (Cohere, Granite)
    or cap (Gemma 2) on logits if there is one.

    The vectors replace the last layer's output; the model runs on one token per vector.
    """
    rows = residual.reshape(-1, 1, residual.shape[-1])
    last = model.facts.n_layers - 1
    tokens = torch.zeros(len(rows), 1, dtype=torch.long, device=rows.device)
    leave = (f"blocks.{last}.hook_resid_post", edit_hook(lambda activation: rows.to(activation.dtype)))
    with torch.no_grad():
        return run_from(model, last, rows, tokens, [leave]).reshape(*residual.shape[:-1], -1)


def check_read_out(
    model: HookedModel, read: Float[torch.Tensor, "row d_vocab"], logits: Float[torch.Tensor, "row d_vocab"]
) -> None:
    """Raise `LensPruneError` unless logits read out of a run's final residual stream are that run's own."""
    error = float((read - logits).abs().max() / logits.abs().max().clamp(min=1e-30))
    if not error < tolerance_of(logits.dtype):
        raise LensPruneError(
            f"the logits of {model.facts.architecture} do not equal the readout of its final residual stream (relative "
            f"error {error:.2g}): its head does more than norm, unembed, scale and cap, so it can't be attributed"
        )


def linear_read_out(
    model: HookedModel, final: Float[torch.Tensor, "row d_model"], logits: Float[torch.Tensor, "row d_vocab"]
) -> tuple[float, Float[torch.Tensor, "row d_vocab"]]:
    """The factor between unembedding and logits (Cohere's ``logit_scale``, 1 over Granite's ``logits_scaling``, mostly
    1), and the logits before the cap, `doubled`.

    The factor is measured, since families name and define it differently: `logits` are those of `final`.

    Raises:
        LensPruneError: no factor makes the normed and unembedded `final` the run's logits.
    """
    module: Any = model.module
    with torch.no_grad():
        unscaled = doubled(final_norm(model).module(final[:, None])[:, 0] @ unembedding(model) + module.b_U)
        cap = _logit_cap(module)
        observed = doubled(logits)
        if cap:
            near = observed.abs() < _UNSATURATED * cap
            target, uncapped = torch.atanh(observed[near] / cap) * cap, unscaled[near]
        else:
            target, uncapped = observed, unscaled
        scale = float((target * uncapped).sum() / uncapped.square().sum().clamp(min=1e-30))
        raw = scale * unscaled
        check_read_out(model, (torch.tanh(raw / cap) * cap if cap else raw).to(logits), logits)
    return scale, raw


def _logit_cap(module: Any) -> float:
    """Where logits are capped by tanh; 0 without a cap."""
    config = getattr(getattr(module, "original_model", None), "config", None)
    declared = getattr(config, "final_logit_softcapping", None) or getattr(module.cfg, "output_logits_soft_cap", None)
    return max(0.0, float(declared or 0.0))
