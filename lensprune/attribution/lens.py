"""The logit lens: what the model would answer if it stopped after each layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float

from lensprune.attribution.pairs import PromptPair, pair_batches
from lensprune.attribution.runs import capture
from lensprune.errors import LensPruneError
from lensprune.models.adapt import as_hooked_model
from lensprune.models.base import HookedModel
from lensprune.models.weights import final_norm, unembedding

__all__ = ["logit_lens", "read_out"]

_BATCH = 4


def read_out(
    model: HookedModel, residual: Float[torch.Tensor, "*rows d_model"]
) -> Float[torch.Tensor, "*rows d_vocab"]:
    """Logits of residual vectors through the final norm, the unembedding, and the cap on logits where there is one."""
    module: Any = model.module
    shape = residual.shape[:-1]
    with torch.no_grad():
        normed = final_norm(model).module(residual.reshape(1, -1, residual.shape[-1])).reshape(*shape, -1)
        logits = normed @ unembedding(model) + module.b_U
        config = getattr(getattr(module, "original_model", None), "config", None)
        cap = getattr(config, "final_logit_softcapping", None)
        return torch.tanh(logits / cap) * cap if cap else logits


def logit_lens(model: Any, pairs: Sequence[PromptPair]) -> pd.DataFrame:
    """Read the residual stream before every layer and after the last, at the last token of the clean prompts
    (nostalgebraist 2020).

    Returns:
        One row a depth (0: the embedding; n: after n layers): depth, logit_difference, answer_logprob (nats) and
        answer_rank (0: most likely), means over the pairs.

    Raises:
        LensPruneError: the last row is not what the model answers, so its readout is another.
    """
    hooked = as_hooked_model(model)
    n_layers = hooked.facts.n_layers
    names = [*(f"blocks.{layer}.hook_resid_pre" for layer in range(n_layers)), f"blocks.{n_layers - 1}.hook_resid_post"]
    found = []
    for batch in pair_batches(pairs, hooked.facts.device, _BATCH):
        logits, kept = capture(hooked, batch.clean, names)
        read = read_out(hooked, torch.stack([kept[name][:, -1] for name in names]))
        error = float((read[-1] - logits).abs().max() / logits.abs().max().clamp(min=1e-30))
        if not error < (1e-3 if logits.dtype in (torch.float32, torch.float64) else 5e-2):
            raise LensPruneError(f"the readout of {hooked.facts.architecture} is not its final norm and unembedding")
        for depth, own in enumerate(read.float()):
            right = own.gather(1, batch.answer[:, None])
            logprob = right - own.logsumexp(-1, keepdim=True)
            rank = (own > right).sum(-1)
            values = zip(batch.metric(own).tolist(), logprob[:, 0].tolist(), rank.tolist(), strict=True)
            found += [(depth, *row) for row in values]
    frame = pd.DataFrame(found, columns=["depth", "logit_difference", "answer_logprob", "answer_rank"])
    return frame.groupby("depth", as_index=False).mean()
