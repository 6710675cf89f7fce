"""From logits to responses: what both executors share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float

from lensprune.models.base import HookedModel
from lensprune.precision import accumulation_dtype, widened
from lensprune.protocols.requests import LoglikelihoodResponse

__all__ = ["eos_token_ids", "finite_rows", "pad_token_id", "score_continuation"]


def score_continuation(
    logits: Float[torch.Tensor, "continuation d_vocab"], continuation: Sequence[int]
) -> LoglikelihoodResponse:
    """Sum the log-probabilities (nats) of `continuation`; row t of `logits` predicts token t.

    A logit that is NaN or infinite makes the whole response NaN.
    """
    targets = torch.tensor(list(continuation), device=logits.device)
    if not bool(torch.isfinite(logits).all()):
        return LoglikelihoodResponse(math.nan, False, len(targets))
    logprobs = torch.log_softmax(widened(logits), dim=-1)
    total = logprobs.gather(1, targets[:, None]).sum()
    return LoglikelihoodResponse(float(total), bool((logits.argmax(-1) == targets).all()), len(targets))


def finite_rows(logits: Float[torch.Tensor, "row d_vocab"]) -> Bool[torch.Tensor, " row"]:
    """Whether all logits of a row are finite."""
    if logits.device.type != "cpu":
        return torch.isfinite(logits).all(-1)
    # A finite sum has only finite terms, and on a CPU it is several times faster than checking each term.
    finite = torch.isfinite(logits.sum(-1, dtype=accumulation_dtype(logits.dtype)))
    return finite if bool(finite.all()) else torch.isfinite(logits).all(-1)


def eos_token_ids(model: HookedModel, generation_config: str = "model") -> frozenset[int]:
    """Every token that ends a generation: the tokenizer's EOS, and those of the model's generation config.

    The model's configuration counts only if the generation config names none, as in transformers, or is ignored
    (`generation_config` is ``none``).
    """
    hf = getattr(model.module, "original_model", None)
    first = getattr(hf, "generation_config", None) if generation_config == "model" else None
    configs = (first, getattr(hf, "config", None))
    stated = next((ids for c in configs if (ids := getattr(c, "eos_token_id", None)) is not None), None)
    stated_ids = [model.tokenizer.eos_token_id, *(stated if isinstance(stated, (list, tuple)) else [stated])]
    return frozenset(i for i in stated_ids if isinstance(i, int))


def pad_token_id(model: HookedModel) -> int:
    """A token to fill masked positions with; any valid id works, since masks hide it."""
    tokenizer = model.tokenizer
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id):
        if isinstance(candidate, int):
            return candidate
    return 0
