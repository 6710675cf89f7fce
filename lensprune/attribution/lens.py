"""The logit lens: the answer that the residual stream encodes after each layer."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch

from lensprune.attribution.pairs import PromptPair, pair_batches
from lensprune.attribution.readout import check_read_out, read_out
from lensprune.attribution.runs import capture
from lensprune.models.adapt import as_hooked_model
from lensprune.models.base import AnyModel
from lensprune.precision import widened

__all__ = ["logit_lens"]

_BATCH = 4


def logit_lens(model: AnyModel, pairs: Sequence[PromptPair]) -> pd.DataFrame:
    """Apply the logit lens: read out the residual stream before every layer and after the last, at the last token of
    the clean prompts (nostalgebraist 2020).

    Returns:
        One row per depth (0: the embedding; n: after n layers): depth, logit_difference, answer_logprob (nats) and
        answer_rank (0: most likely), means over the pairs.

    Raises:
        LensPruneError: the last row does not match the model's output.
    """
    hooked = as_hooked_model(model)
    n_layers = hooked.facts.n_layers
    names = [*(f"blocks.{layer}.hook_resid_pre" for layer in range(n_layers)), f"blocks.{n_layers - 1}.hook_resid_post"]
    rows = []
    for batch in pair_batches(pairs, hooked.facts.device, _BATCH):
        logits, kept = capture(hooked, batch.clean, names)
        read = read_out(hooked, torch.stack([kept[name][:, -1] for name in names]))
        check_read_out(hooked, read[-1], logits)
        for depth, layer_logits in enumerate(widened(read)):
            right = layer_logits.gather(1, batch.answer[:, None])
            logprob = right - layer_logits.logsumexp(-1, keepdim=True)
            rank = (layer_logits > right).sum(-1)
            values = zip(batch.metric(layer_logits).tolist(), logprob[:, 0].tolist(), rank.tolist(), strict=True)
            rows += [(depth, *row) for row in values]
    frame = pd.DataFrame(rows, columns=["depth", "logit_difference", "answer_logprob", "answer_rank"])
    return frame.groupby("depth", as_index=False).mean()
