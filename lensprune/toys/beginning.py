"""Initial weights: random, except for two planted heads that match a token to its earlier occurrence.

In-context retrieval needs a head that attends to the previous token, followed by one that matches keys (Olsson et al.
2022, arXiv:2209.11895). Small models learn this pair only after many texts: in trials of about 300 steps, from random
weights and with only the first head planted, retrieval from four pairs stayed at chance. So both are planted: head 0 of
block 0 attends to the previous token and copies it to a separate subspace; head 0 of block 1 looks for the current
token in that subspace and copies what it attends to, too weakly to answer anything before training. How to use the
copies, and everything about arithmetic, is learnt, and training may also change the planted weights.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from lensprune.toys.recipe import Recipe, model_config

__all__ = ["new_model"]

_EMBEDDING_SCALE = 0.1
_CONSTANT = 0.3
_FREQUENCIES = 5
"""Number of rotary frequencies that distinguish neighbours, starting with the fastest."""
_SHARPNESS = 2.6
_COPY_ASIDE = 0.2
_FAST = 4
"""Number of rotary frequencies not used for matching: they rotate away from a key a few tokens back."""
_MATCHING = 2.0
_COPY = 0.3


@torch.no_grad()
def new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """An untrained model; the same recipe gives the same weights."""
    torch.manual_seed(recipe.seed)
    model = LlamaForCausalLM(model_config(recipe, tokenizer))
    model.model.embed_tokens.weight.normal_(0, _EMBEDDING_SCALE)
    # The same for every token: read by heads that must act alike on all tokens.
    model.model.embed_tokens.weight[:, 0] = _CONSTANT
    size = recipe.d_model // recipe.n_heads
    here, aside = _orthonormal(2 * size, recipe.d_model).split(size)
    _plant_previous_token(model, here, aside)
    _plant_matching(model, here, aside)
    return model


def _orthonormal(rows: int, columns: int) -> Float[torch.Tensor, "rows columns"]:
    """Random orthonormal rows that do not read column 0."""
    matrix = torch.zeros(rows, columns)
    matrix[:, 1:] = torch.linalg.qr(torch.randn(columns - 1, columns - 1))[0][:rows]
    return matrix


def _plant_previous_token(
    model: LlamaForCausalLM, here: Float[torch.Tensor, "d_head d_model"], aside: Float[torch.Tensor, "d_head d_model"]
) -> None:
    """Head 0 of block 0: attends to the previous token, and copies its `here` subspace to `aside`."""
    size = here.shape[0]
    attention = model.model.layers[0].self_attn
    n = min(_FREQUENCIES, size // 2)
    angles = model.model.rotary_emb.inv_freq[:n]
    # Query R_i·u and key R_j·R_1·u: their product is largest where j = i − 1, whatever the tokens.
    query, key = torch.zeros(size), torch.zeros(size)
    query[:n] = 1
    key[:n], key[size // 2 : size // 2 + n] = angles.cos(), angles.sin()
    for projection, direction in ((attention.q_proj, query), (attention.k_proj, key)):
        projection.weight[:size] = 0
        projection.weight[:size, 0] = _SHARPNESS * direction
    attention.v_proj.weight[:size] = here
    attention.o_proj.weight[:, :size] = _COPY_ASIDE * aside.T


def _plant_matching(
    model: LlamaForCausalLM, here: Float[torch.Tensor, "d_head d_model"], aside: Float[torch.Tensor, "d_head d_model"]
) -> None:
    """Head 0 of block 1: attends to positions whose previous token equals the current one, and copies the token
    there."""
    size = here.shape[0]
    attention = model.model.layers[1].self_attn
    slow = torch.ones(size)
    for start in (0, size // 2):
        slow[start : start + min(_FAST, size // 4)] = 0
    attention.q_proj.weight[:size] = _MATCHING * slow[:, None] * here
    attention.k_proj.weight[:size] = _MATCHING * slow[:, None] * aside
    copied = _orthonormal(size, here.shape[1])
    attention.v_proj.weight[:size] = copied
    attention.o_proj.weight[:, :size] = _COPY * copied.T
