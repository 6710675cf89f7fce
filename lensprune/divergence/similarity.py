"""Layer importance from hidden states alone: the baselines that need no task."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float

from lensprune.engine.batching import batches_by_length, pad_left
from lensprune.engine.scoring import pad_token_id
from lensprune.errors import UserError
from lensprune.models.base import HookedModel
from lensprune.precision import doubled, widened

__all__ = ["angular_distance", "layer_similarity"]

_MAX_TOKENS = 2048


def angular_distance(a: Float[torch.Tensor, "*any d"], b: Float[torch.Tensor, "*any d"]) -> Float[torch.Tensor, "*any"]:
    """Angle between two vectors over π, from 0 to 1 (Gromov et al. 2024, arXiv 2403.17887, eq. 7).

    In float32 at least, with the cosine clamped to [−1, 1]: in bfloat16 nearly parallel residuals give a cosine above 1
    and NaN.
    """
    cosine = torch.nn.functional.cosine_similarity(widened(a), widened(b), dim=-1)
    return cosine.clamp(-1, 1).arccos() / math.pi


def layer_similarity(model: HookedModel, prompts: Sequence[Sequence[int]]) -> pd.DataFrame:
    """How much each layer changes the residual stream, on given prompts.

    Args:
        prompts: token ids; pads are excluded.

    Returns:
        One row per layer: ``variant`` (``L3.skip``, so that it joins a layer sweep), ``layer``; ``block_influence``,
        1 − mean over positions of the cosine between the residuals before and after the layer (Men et al. 2024,
        arXiv 2403.03853, eq. 1); ``angular_distance``, the mean angle over π between the two at each prompt's last
        position (Gromov et al. 2024). Larger values mean that the layer does more.

    Raises:
        UserError: no prompt, or an empty one.
    """
    if not prompts or not all(len(prompt) for prompt in prompts):
        raise UserError("layer similarity needs prompts, and each needs a token")
    n_layers = model.facts.n_layers
    before: dict[int, torch.Tensor] = {}
    cosines, angles, positions = [0.0] * n_layers, [0.0] * n_layers, 0

    def keep(layer: int, value: torch.Tensor, hook: Any) -> None:
        before[layer] = value

    def compare(layer: int, mask: torch.Tensor, value: torch.Tensor, hook: Any) -> None:
        pre, post = before.pop(layer), value
        cosine = torch.nn.functional.cosine_similarity(widened(pre), widened(post), dim=-1).clamp(-1, 1)
        cosines[layer] += float(doubled(cosine[mask]).sum())
        angles[layer] += float(doubled(angular_distance(pre[:, -1], post[:, -1])).sum())

    for batch in batches_by_length([len(prompt) for prompt in prompts], _MAX_TOKENS):
        padded = pad_left([tuple(prompts[i]) for i in batch], pad_token_id(model), model.facts.device)
        real = padded.attention_mask.bool()
        positions += int(real.sum())
        hooks = [
            named
            for layer in range(n_layers)
            for named in (
                (f"blocks.{layer}.hook_resid_pre", partial(keep, layer)),
                (f"blocks.{layer}.hook_resid_post", partial(compare, layer, real)),
            )
        ]
        with torch.inference_mode(), model.hooks(hooks):
            model.forward(padded.input_ids, padded.attention_mask, padded.position_ids, logits_to_keep=1)
    return pd.DataFrame(
        {
            "variant": [f"L{layer}.skip" for layer in range(n_layers)],
            "layer": range(n_layers),
            "block_influence": [1 - total / positions for total in cosines],
            "angular_distance": [total / len(prompts) for total in angles],
        }
    )
