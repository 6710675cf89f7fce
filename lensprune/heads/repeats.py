"""The cost of removing each head on repeated random tokens, which only attention can predict."""

from __future__ import annotations

import pandas as pd

from lensprune.ablation.enumeration import each_head
from lensprune.ablation.variants import CLEAN
from lensprune.engine.registry import make_executor
from lensprune.errors import UserError
from lensprune.heads.sequences import repeated_random_tokens
from lensprune.models.adapt import as_hooked_model
from lensprune.models.base import AnyModel
from lensprune.protocols.requests import LoglikelihoodRequest, LoglikelihoodResponse

__all__ = ["repeat_effects"]


def repeat_effects(
    model: AnyModel,
    *,
    sequences: int = 4,
    length: int | None = 25,
    ablation: str = "zero",
    executor: str = "forked",
    seed: int = 0,
) -> pd.DataFrame:
    """Measure the change in log-probability of repeated tokens when each head is removed (Olsson et al. 2022,
    arXiv:2209.11895: induction heads are those that make in-context copies).

    Args:
        sequences, length, seed: of `repeated_random_tokens`.
        ablation: only ``zero``; the others need reference prompts.

    Returns:
        layer, head, effect: nats per token over the second repeat, without its first token, which can't be predicted;
        negative: the head was needed.

    Raises:
        UserError: another ablation, or a length that model and tokenizer do not allow.
    """
    if ablation != "zero":
        raise UserError(f"ablation {ablation!r} needs reference prompts, which random tokens don't have: use zero")
    hooked = as_hooked_model(model)
    repeated = repeated_random_tokens(hooked, sequences, length, seed)
    begin = repeated.prefix + repeated.length + 1
    requests = [LoglikelihoodRequest(tuple(row[:begin]), tuple(row[begin:])) for row in repeated.tokens.tolist()]
    heads = each_head(hooked, ablation)
    totals = {}
    for answered in make_executor(executor, hooked).run(requests, [CLEAN, *heads]):
        logprobs = [r.logprob for r in answered.responses if isinstance(r, LoglikelihoodResponse)]
        totals[answered.variant.name] = sum(logprobs) / (len(requests) * (repeated.length - 1))
    rows = [(head.layer, head.head, totals[head.name] - totals[CLEAN.name]) for head in heads]
    return pd.DataFrame(rows, columns=["layer", "head", "effect"])
