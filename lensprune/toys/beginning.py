"""Where training begins: random weights, but for one head of the first block that attends to the previous token.

Retrieval in context needs such a head in front of one that matches keys (Olsson et al. 2022, arXiv:2209.11895), and
small models find the pair only after many more texts than fit into minutes on a CPU. The first half is given; all
that uses it is learnt, and training may change it too.
"""

from __future__ import annotations

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from lensprune.toys.recipe import Recipe, model_config

__all__ = ["new_model"]

_FREQUENCIES = 5
"""Rotary frequencies that tell neighbours apart, from the fastest on."""
_SHARPNESS = 2.6
_CONSTANT = 0.15


@torch.no_grad()
def new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """An untrained model; the same recipe gives the same weights."""
    torch.manual_seed(recipe.seed)
    model = LlamaForCausalLM(model_config(recipe, tokenizer))
    size = recipe.d_model // recipe.n_heads
    half = size // 2
    model.model.embed_tokens.weight[:, 0] = _CONSTANT
    attention = model.model.layers[0].self_attn
    n = min(_FREQUENCIES, half)
    angles = model.model.rotary_emb.inv_freq[:n]
    # Query R_i·u and key R_j·R_1·u: their product is largest where j = i − 1, whatever the tokens.
    query, key = torch.zeros(size), torch.zeros(size)
    query[:n] = 1
    key[:n], key[half : half + n] = angles.cos(), angles.sin()
    for projection, direction in ((attention.q_proj, query), (attention.k_proj, key)):
        projection.weight[:size] = 0
        projection.weight[:size, 0] = _SHARPNESS * direction
    attention.v_proj.weight[:size, 0] = 0
    return model
