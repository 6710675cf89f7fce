"""The contract of every executor: requests × variants in, responses out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from lensprune.ablation.reference import ReferenceActivations
from lensprune.ablation.variants import Variant
from lensprune.protocols.requests import Request, Response

__all__ = [
    "AnswerCallback",
    "Executor",
    "KnownAnswers",
    "ProgressCallback",
    "VariantResponses",
    "WorkCallback",
    "lacking",
]

ProgressCallback = Callable[[int], None]
"""Called with the number of (variant, request) rows finished since the last call."""
AnswerCallback = Callable[[str, Mapping[int, Response]], None]
"""Called with a variant's name and its answers since the last call, by request index."""
KnownAnswers = Mapping[str, Mapping[int, Response]]
"""Answers from before, by variant's name and request index."""
WorkCallback = Callable[[str, float], object]
"""Called with a variant's name and how many of its rows were processed since the last call. Fractions of a row count,
by tokens of the prompt and new tokens; when a text ends early, the tokens that it did not need count as processed."""


@dataclass(frozen=True)
class VariantResponses:
    """The answers of one variant, aligned with the requests it was given."""

    variant: Variant
    responses: tuple[Response, ...]


class Executor(Protocol):
    """Runs requests under variants.

    `run` yields each variant once, in the order given. `reference` supplies the activations that `mean` and `resample`
    need. `on_answers` gets every answer as soon as it is finished, without waiting for the variant's other answers or
    for earlier variants. An executor may also take ``on_work``, a `WorkCallback`, so that progress is shown while texts
    are written, and ``known``, `KnownAnswers`: these are not asked for again and not reported to the callbacks, but are
    among the responses. Without ``known``, variants that lack different answers are run one after another. An executor
    that takes ``known`` and ``checkpoint`` gets a `lensprune.engine.decoding.Checkpoint`, a file in which it may keep
    the state of texts that are being written. It may then also be given variants whose answers are all known, without
    the reference that these would need; their responses are wanted all the same.

    Raises:
        HookNeverFired: a hook of a variant did not fire.
        UserError: a variant needs a reference and none was given, or names a part that the model lacks; or two variants
            have the same name.
    """

    name: str

    def run(
        self,
        requests: Sequence[Request],
        variants: Sequence[Variant],
        *,
        reference: ReferenceActivations | None = None,
        progress: ProgressCallback | None = None,
        on_answers: AnswerCallback | None = None,
    ) -> Iterator[VariantResponses]: ...


def lacking(n_requests: int, variants: Sequence[Variant], known: KnownAnswers) -> set[str]:
    """Names of the variants that have no answer yet to some of so many requests."""
    return {v.name for v in variants if any(i not in known.get(v.name, {}) for i in range(n_requests))}
