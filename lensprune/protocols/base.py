"""An item's requests, and its outcome."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from lensprune.protocols.requests import Request, StopReason
from lensprune.tasks.base import Item, ProtocolName

__all__ = ["Failure", "ItemRequests", "Outcome", "Prompt"]

Failure = Literal["none", "no_answer", "degenerate", "wrong_answer", "non_finite", "cut_off"]


@dataclass(frozen=True)
class Prompt:
    """The strings of one request: lm-eval's ``arguments`` of an instance."""

    context: str
    continuation: str = ""


@dataclass(frozen=True)
class ItemRequests:
    """All requests of one item under one protocol, aligned with `prompts`.

    `truncated_tokens` counts context tokens cut on the left to fit the model's context (0 if none); `sample` is the
    number of the repeat, for items that are sampled several times.
    """

    item: Item
    protocol: ProtocolName
    prompts: tuple[Prompt, ...]
    requests: tuple[Request, ...]
    truncated_tokens: int = 0
    sample: int = 0


@dataclass(frozen=True)
class Outcome:
    """The scored answer of one variant to one item.

    `gold_logprob` (nats) and `logprob_margin` (gold minus best other, nats) are ``None`` under generate; `metrics`
    holds every metric by lm-eval's name (``acc``, ``acc_norm``, ``exact_match,strict-match``, …); `correct` is the
    task's primary one. `n_tokens` counts scored (likelihood) or generated tokens; `text` is the model's answer.
    `thinking` is the text before the answer, and `n_thinking_tokens` its length; ``None`` if thinking is not separated
    (without think tokens, and when options are scored). `option_logprobs` are the options' summed log-probabilities
    (nats), in order, before the protocol normalises them; ``None`` if no options are scored. `sample`: which repeat of
    the item this is; `stop_reason`: why a generation ended.
    """

    item_id: str
    cluster: str | None
    target: str
    prediction: str | None
    correct: bool
    gold_logprob: float | None
    logprob_margin: float | None
    failure: Failure
    n_tokens: int
    text: str
    metrics: Mapping[str, float]
    option_logprobs: tuple[float, ...] | None = None
    sample: int = 0
    stop_reason: StopReason | None = None
    thinking: str | None = None
    n_thinking_tokens: int | None = None
