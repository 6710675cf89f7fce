"""What a protocol asks of a model, and what an executor answers: token ids in, numbers or text out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

__all__ = [
    "GenerateRequest",
    "GenerateResponse",
    "LoglikelihoodRequest",
    "LoglikelihoodResponse",
    "Request",
    "Response",
    "StopReason",
]

StopReason = Literal["stop_string", "eos", "length", "non_finite"]


@dataclass(frozen=True)
class LoglikelihoodRequest:
    """Sum of log-probabilities of `continuation_ids` after `context_ids` (both non-empty, already truncated).

    `item`: id of the item that asks this, for hooks of the user's own; no part of what is asked.
    """

    context_ids: tuple[int, ...]
    continuation_ids: tuple[int, ...]
    item: str | None = field(default=None, compare=False)

    @property
    def input_ids(self) -> tuple[int, ...]:
        """What the model reads: nothing is predicted from the last token."""
        return (self.context_ids + self.continuation_ids)[:-1]


@dataclass(frozen=True)
class GenerateRequest:
    """Greedy generation after `context_ids` until one of the strings `until`, EOS, or `max_new_tokens`.

    `item`: as in `LoglikelihoodRequest`.
    """

    context_ids: tuple[int, ...]
    until: tuple[str, ...]
    max_new_tokens: int
    item: str | None = field(default=None, compare=False)


@dataclass(frozen=True)
class LoglikelihoodResponse:
    """`logprob` in nats, summed over the continuation (NaN if any logit was not finite);
    `is_greedy`: every continuation token was the argmax; `n_tokens`: continuation length."""

    logprob: float
    is_greedy: bool
    n_tokens: int


@dataclass(frozen=True)
class GenerateResponse:
    """`text`: decoded without special tokens and cut before the first stop string; `token_ids`: all new
    tokens, the stop string's or EOS included."""

    text: str
    token_ids: tuple[int, ...]
    stop_reason: StopReason


Request = LoglikelihoodRequest | GenerateRequest
Response = LoglikelihoodResponse | GenerateResponse
