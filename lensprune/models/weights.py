"""The linear maps of a model that attribution uses: head projections, embedding, unembedding, and frozen norms."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float

from lensprune.errors import UserError
from lensprune.models.base import HookedModel

__all__ = [
    "FrozenNorm",
    "block_of",
    "embedding",
    "final_norm",
    "frozen_norm",
    "output_weights",
    "unembedding",
    "value_weights",
]

_LARGE = 1e3


@dataclass(frozen=True)
class FrozenNorm:
    """A LayerNorm or RMSNorm with its scale held fixed, a linear map: ``centre(x) · weight / scale + bias``.

    `weight` and `bias` are measured on the module, so that an offset (Gemma's 1 + w) is included; `centred` is true for
    a LayerNorm, which subtracts the mean. `module` is the model's own; everything else uses `precise`, a copy in
    float32 or wider, so that half precision does not blur measurements.
    """

    module: torch.nn.Module
    precise: torch.nn.Module
    weight: Float[torch.Tensor, " d_model"]
    bias: Float[torch.Tensor, " d_model"]
    centred: bool

    def centre(self, x: Float[torch.Tensor, "*rows d_model"]) -> Float[torch.Tensor, "*rows d_model"]:
        """`x` minus its mean, if the norm subtracts it."""
        x = x.to(self.weight.dtype)
        return x - x.mean(-1, keepdim=True) if self.centred else x

    def scale(self, x: Float[torch.Tensor, "*rows d_model"]) -> Float[torch.Tensor, "*rows 1"]:
        """What the module divides by on input `x`."""
        with torch.no_grad():
            numerator = self.centre(x) * self.weight
            output = self.precise(x.to(self.weight.dtype)) - self.bias
        return (numerator * numerator).sum(-1, keepdim=True) / (numerator * output).sum(-1, keepdim=True)

    def apply(
        self, part: Float[torch.Tensor, "*rows d_model"], scale: Float[torch.Tensor, "*rows 1"]
    ) -> Float[torch.Tensor, "*rows d_model"]:
        """The linear part of the norm on a summand of its input: without the bias, with a scale from `scale`."""
        return self.centre(part) * self.weight / scale

    def pull_back(
        self, directions: Float[torch.Tensor, "*rows d_model"], scale: Float[torch.Tensor, "*rows 1"]
    ) -> Float[torch.Tensor, "*rows d_model"]:
        """Map directions after the norm to directions before it: ``apply(x) · d`` is ``x · pull_back(d)``."""
        return self.centre(directions * self.weight) / scale


def frozen_norm(module: Any) -> FrozenNorm:
    """Measure a norm module of a TransformerLens model (or a plain one).

    Raises:
        UserError: the module is not a LayerNorm or RMSNorm over the last dimension.
    """
    inner = getattr(module, "original_component", None) or module
    parameter = next(inner.parameters(), None)
    if parameter is None or parameter.ndim != 1:
        raise UserError(f"a norm of type {type(inner).__name__} has no weight vector: expected LayerNorm or RMSNorm")
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    precise = copy.deepcopy(inner).to(dtype)
    ones = torch.ones_like(parameter, dtype=dtype).detach()
    # A vector of ±1 has mean 0 and mean square 1, up to one coordinate when the width is odd.
    signs = ones.clone()
    signs[1::2] = -1
    if len(signs) % 2:
        signs[-1] = 0
    with torch.no_grad():

        def run(x: torch.Tensor) -> torch.Tensor:
            return precise(x[None, None])[0, 0]

        bias = run(torch.zeros_like(ones))
        centred = bool(torch.allclose(run(ones * _LARGE), bias, atol=1e-3))
        probe = signs if centred else ones
        size = probe.square().mean().sqrt()
        weight = torch.where(probe != 0, (run(probe * _LARGE) - bias) * size / probe, torch.zeros_like(ones))
        if len(signs) % 2 and centred:
            rolled = signs.roll(1)
            weight[-1] = ((run(rolled * _LARGE) - bias) * size / rolled)[-1]
        frozen = FrozenNorm(inner, precise, weight, bias, centred)
        check = torch.linspace(-1, 2, len(ones), device=ones.device).sin().to(ones.dtype)
        expected = run(check)
        normed = frozen.apply(check, frozen.scale(check[None, None])[0, 0]) + bias
    if not torch.allclose(normed, expected, rtol=1e-2, atol=1e-2 * float(expected.abs().max())):
        raise UserError(f"a norm of type {type(inner).__name__} is neither a LayerNorm nor an RMSNorm")
    return frozen


def _module(model: HookedModel) -> Any:
    return model.module


def block_of(model: HookedModel, layer: int) -> Any:
    """TransformerLens's block of a layer."""
    return _module(model).blocks[layer]


def final_norm(model: HookedModel) -> FrozenNorm:
    """The norm before the unembedding."""
    return frozen_norm(_module(model).ln_final)


def output_weights(model: HookedModel, layer: int) -> Float[torch.Tensor, "head d_head d_model"]:
    """W_O of every query head of a layer: ``z[h] @ W_O[h]`` is what head h adds before any norm after attention.

    It includes the factor on branches (Granite's ``residual_multiplier``), as does ``hook_attn_out``.
    """
    block = block_of(model, layer)
    factor = getattr(block, "residual_contribution_scale", 1.0)
    return block.attn.W_O if factor == 1 else block.attn.W_O * factor


def value_weights(model: HookedModel, layer: int) -> Float[torch.Tensor, "head d_model d_head"]:
    """W_V of every query head of a layer; heads of one group have the same."""
    weights = block_of(model, layer).attn.W_V
    return weights.repeat_interleave(model.facts.n_heads // weights.shape[0], dim=0)


def embedding(model: HookedModel) -> Float[torch.Tensor, "d_vocab d_model"]:
    """W_E: the embedding of every token, without positions."""
    return _module(model).W_E


def unembedding(model: HookedModel) -> Float[torch.Tensor, "d_model d_vocab"]:
    """W_U: from the normed final residual to logits."""
    return _module(model).W_U
