"""Copying: whether a head raises the logit of the token that it attends to, by the eigenvalues of its OV circuit."""

from __future__ import annotations

import torch
from jaxtyping import Complex, Float

from lensprune.heads.registry import HeadScore, Measured, ScoreOptions, measured_by
from lensprune.models.base import HookedModel
from lensprune.models.weights import (
    block_of,
    embedding,
    final_norm,
    frozen_norm,
    output_weights,
    unembedding,
    value_weights,
)

__all__ = ["COPYING", "measure_copying", "ov_eigenvalues"]

_SLICE = 8192
_NOTHING = 1e-9
"""An OV circuit smaller than the model's largest by this factor moves nothing; its eigenvalues are rounding errors."""


def ov_eigenvalues(model: HookedModel) -> Complex[torch.Tensor, "layer head d_head"]:
    """Non-zero eigenvalues of W_E · W_V · W_O · W_U of every head, token to token.

    A product of matrices has the non-zero eigenvalues of its cyclic shift, so the d_head × d_head matrix
    W_O · W_U · W_E · W_V is used instead of the d_vocab × d_vocab one. The weights of the norms before the head, after
    attention (if any) and before the unembedding are folded in, as is LayerNorm's centring; the norms' scales, biases
    and position embeddings are left out.
    """
    with torch.no_grad():
        final = final_norm(model)
        through = _unembed_embed(model)
        rows = []
        for layer in range(model.facts.n_layers):
            block = block_of(model, layer)
            written = output_weights(model, layer).cpu().double()
            if "ln1_post" in block._modules:
                after = frozen_norm(block.ln1_post)
                written = after.centre(written) * after.weight.cpu().double()
            to_logits = final.centre(written) * final.weight.cpu().double()
            read = value_weights(model, layer).cpu().double()
            # OLMo 2 and similar models have none, and read the residual stream itself.
            if "ln1" in block._modules:
                before = frozen_norm(block.ln1)
                read = read * before.weight.cpu().double()[None, :, None]
                if before.centred:
                    read = read - read.mean(1, keepdim=True)
            rows.append(torch.linalg.eigvals(to_logits @ through @ read))
        return torch.stack(rows)


def _unembed_embed(model: HookedModel) -> Float[torch.Tensor, "d_model d_model"]:
    """W_U · W_E in float64, summed over slices of the vocabulary."""
    out, back = unembedding(model), embedding(model)
    total = torch.zeros(out.shape[0], back.shape[1], dtype=torch.float64)
    for start in range(0, back.shape[0], _SLICE):
        part = slice(start, start + _SLICE)
        total += out[:, part].cpu().double() @ back[part].cpu().double()
    return total


def measure_copying(model: HookedModel, options: ScoreOptions) -> Measured:
    """Σλ / Σ|λ| over the eigenvalues λ of each head's OV circuit; 0 for a head that moves nothing."""
    values = ov_eigenvalues(model)
    size: Float[torch.Tensor, "layer head"] = values.abs().sum(-1)
    moves = size > _NOTHING * size.max()
    return {"copying": torch.where(moves, values.real.sum(-1) / size.clamp(min=1e-300), 0.0)}


COPYING: list[HeadScore] = measured_by(
    measure_copying,
    (
        "copying",
        "sum of the eigenvalues of the head's token-to-token OV circuit, divided by the sum of their magnitudes",
        "Elhage et al. 2021, A Mathematical Framework for Transformer Circuits",
        "−1 to 1",
    ),
)
