"""Requests that a protocol sends to a model, and an executor's responses: token ids in, numbers or text out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from lensprune.errors import UserError

__all__ = [
    "ForcedEnd",
    "GenerateRequest",
    "GenerateResponse",
    "GenerationConfigUse",
    "LoglikelihoodRequest",
    "LoglikelihoodResponse",
    "Request",
    "Response",
    "Sampling",
    "StopReason",
    "Thinking",
]

StopReason = Literal["stop_string", "eos", "length", "non_finite"]
GenerationConfigUse = Literal["model", "none"]


@dataclass(frozen=True)
class LoglikelihoodRequest:
    """Sum of log-probabilities of `continuation_ids` after `context_ids` (both non-empty, already truncated).

    `item`: id of the request's item, for custom hooks; it does not affect the response otherwise. `classes`: the class
    of each token of context and continuation, for ablations at the tokens of a class; empty if they have none.
    """

    context_ids: tuple[int, ...]
    continuation_ids: tuple[int, ...]
    item: str | None = field(default=None, compare=False)
    classes: tuple[str, ...] = field(default=(), compare=False)

    @property
    def input_ids(self) -> tuple[int, ...]:
        """The token ids fed to the model; the last token is left out, since nothing is predicted from it."""
        return (self.context_ids + self.continuation_ids)[:-1]


@dataclass(frozen=True)
class Sampling:
    """How tokens are sampled: a token's random number depends only on `seed`, the item, `sample` and the position.

    `temperature` > 0; `top_p` in (0, 1], 1 for all; `top_k` tokens, 0 for all; `sample` numbers the repeats of an item.
    """

    temperature: float
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    sample: int = 0


@dataclass(frozen=True)
class ForcedEnd:
    """A forced end to a stretch of text: once `after` tokens have been generated without `marker_ids` among them,
    `forced_ids` are inserted instead of the model's choice, and generation continues."""

    after: int
    marker_ids: tuple[int, ...]
    forced_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.after < 0 or not self.marker_ids or not self.forced_ids:
            raise UserError(
                f"an end can't be forced after {self.after} tokens with {len(self.marker_ids)} tokens of a marker and "
                f"{len(self.forced_ids)} to force: expected 0 or more, 1 or more, 1 or more"
            )

    def forced_at(self, token_ids: Sequence[int]) -> int | None:
        """Index at which `forced_ids` begin among a generation's tokens; ``None`` if nothing was forced."""
        size = len(self.marker_ids)
        free = tuple(token_ids[: self.after])
        marked = any(free[i : i + size] == self.marker_ids for i in range(len(free) - size + 1))
        return None if marked or len(token_ids) <= self.after else self.after


@dataclass(frozen=True)
class Thinking:
    """Where a generated text's thinking is: between `start_ids` (or its first token, if the prompt has `opened` it) and
    the last `end_ids`, which `joint_ids` may precede. The rest is the answer; stop strings end it, never the
    thinking."""

    start_ids: tuple[int, ...]
    end_ids: tuple[int, ...]
    joint_ids: tuple[int, ...] = ()
    opened: bool = False


@dataclass(frozen=True)
class GenerateRequest:
    """Generation after `context_ids` until one of the strings `until`, EOS, or `max_new_tokens`.

    Greedy without `sampling`. `thinking`: how to separate thinking from the answer. `forced_end`: a thinking budget.
    `item`: as in `LoglikelihoodRequest`; the random numbers of `sampling` depend on it too. `generation_config`:
    ``model`` to apply the penalties, suppressed tokens and end tokens of the model's generation config.

    Raises:
        UserError: no token is left for an answer after a forced end.
    """

    context_ids: tuple[int, ...]
    until: tuple[str, ...]
    max_new_tokens: int
    sampling: Sampling | None = None
    forced_end: ForcedEnd | None = None
    thinking: Thinking | None = None
    item: str | None = field(default=None, compare=False)
    generation_config: GenerationConfigUse = "model"

    def __post_init__(self) -> None:
        end = self.forced_end
        if end is not None and end.after + len(end.forced_ids) >= self.max_new_tokens:
            raise UserError(
                f"a thinking budget of {end.after} tokens and the {len(end.forced_ids)} that end it leave no room for "
                f"an answer in {self.max_new_tokens} new tokens: raise --max-new-tokens or lower --thinking-budget"
            )


@dataclass(frozen=True)
class LoglikelihoodResponse:
    """`logprob` in nats, summed over the continuation (NaN if any logit was not finite);
    `is_greedy`: every continuation token was the argmax; `n_tokens`: continuation length."""

    logprob: float
    is_greedy: bool
    n_tokens: int


@dataclass(frozen=True)
class GenerateResponse:
    """`text`: the answer, decoded without special tokens and cut before the first stop string; `token_ids`: all new
    tokens, the stop string's or EOS included.

    If the request has a `Thinking`, `thinking` is that text without its markers, `n_thinking_tokens` long, and
    `thinking_ended` is false if it never ended, in which case there is no answer. Otherwise `thinking` is ``None``.
    """

    text: str
    token_ids: tuple[int, ...]
    stop_reason: StopReason
    thinking: str | None = None
    n_thinking_tokens: int = 0
    thinking_ended: bool = True


Request = LoglikelihoodRequest | GenerateRequest
Response = LoglikelihoodResponse | GenerateResponse
