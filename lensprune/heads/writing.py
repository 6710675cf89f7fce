"""Logit contributions: what each head adds to the answer's logit from the needle, minus from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import einsum
from jaxtyping import Float

from lensprune.attribution.runs import capture
from lensprune.errors import UserError
from lensprune.models.base import HookedModel
from lensprune.models.weights import block_of, final_norm, frozen_norm, output_weights, unembedding

__all__ = ["contributions_by_source", "logit_contributions"]


def contributions_by_source(
    model: HookedModel, tokens: Sequence[int], steps: Sequence[int], targets: Sequence[int]
) -> Float[torch.Tensor, "layer head step key"]:
    """What each head adds to the logit of `targets[i]` at position `steps[i]`, by the position that it reads from.

    Attention × value, through the head's output projection and the unembedding, with the scales of the final norm and
    of any norm after attention held fixed: the head's direct effect, without later parts. Summed over positions, it is
    the head's direct logit attribution. A scale or cap on logits (Cohere, Gemma 2) and biases are not included.
    """
    facts = model.facts
    final_name = f"blocks.{facts.n_layers - 1}.hook_resid_post"
    places = [
        f"blocks.{layer}.attn.{hook}"
        for layer in range(facts.n_layers)
        for hook in ("hook_pattern", "hook_v", "hook_z")
    ]
    row = torch.tensor([list(tokens)], device=facts.device)
    _, kept = capture(model, row, [*places, final_name])
    at = torch.tensor(list(steps), device=facts.device)
    contributions = []
    with torch.no_grad():
        norm = final_norm(model)
        directions = unembedding(model)[:, list(targets)].T.to(norm.weight.dtype)
        towards = norm.pull_back(directions, norm.scale(kept[final_name][0, at]))
        for layer in range(facts.n_layers):
            pattern, v, z = (kept[f"blocks.{layer}.attn.{hook}"][0] for hook in ("hook_pattern", "hook_v", "hook_z"))
            weights = output_weights(model, layer).to(norm.weight.dtype)
            direction = towards
            block = block_of(model, layer)
            if "ln1_post" in block._modules:
                after = frozen_norm(block.ln1_post)
                whole = einsum(z[at].to(weights.dtype), weights, "step head d, head d d_model -> step d_model")
                direction = after.pull_back(towards, after.scale(whole))
            read = einsum(weights, direction, "head d d_model, step d_model -> head step d")
            values = v.repeat_interleave(facts.n_heads // v.shape[1], dim=1).to(weights.dtype)
            worth = einsum(read, values, "head step d, key head d -> head step key")
            contributions.append((pattern[:, at].to(weights.dtype) * worth).cpu().double())
    return torch.stack(contributions)


def logit_contributions(
    model: HookedModel,
    contexts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    needles: Sequence[Sequence[int]],
) -> Float[torch.Tensor, "needle layer head"]:
    """What each head writes towards the answer from the needle's positions, minus from all others (after Gema et al.
    2026, arXiv 2607.01002): logits, mean over the answer's tokens that occur in the needle.

    Args:
        contexts: tokens of each prompt.
        answers: tokens that the model generated after each prompt.
        needles: positions of the needle in each prompt.

    Returns:
        The contributions; NaN for an answer that contains no token of its needle.

    Raises:
        UserError: a needle outside its prompt.
    """
    scores = torch.full((len(contexts), model.facts.n_layers, model.facts.n_heads), torch.nan, dtype=torch.float64)
    for index, (context, answer, needle) in enumerate(zip(contexts, answers, needles, strict=True)):
        if not needle or not 0 <= min(needle) <= max(needle) < len(context):
            raise UserError(f"a needle at {list(needle)} is not in a prompt of {len(context)} tokens")
        held = {context[position] for position in needle}
        written = [(len(context) - 1 + step, token) for step, token in enumerate(answer) if token in held]
        if not written:
            continue
        steps, targets = zip(*written, strict=True)
        by_source = contributions_by_source(model, [*context, *answer][: max(steps) + 1], steps, targets)
        sign = -torch.ones(by_source.shape[-1], dtype=torch.float64)
        sign[list(needle)] = 1
        scores[index] = (by_source @ sign).mean(-1)
    return scores
