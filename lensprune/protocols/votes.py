"""Metrics over several samples of one item."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lensprune.protocols.base import Outcome
from lensprune.tasks.base import GenerationFormat, PromptFormat
from lensprune.tasks.stated import stated_number

__all__ = ["with_votes"]


def with_votes(fmt: PromptFormat, outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Add two metrics over all samples of one item to each of its outcomes.

    ``pass@1``: the share of right samples. ``maj@k`` (k samples): whether the most common answer is right (ties go to
    the earliest). Answers are the same if the task's comparison matches them, or if they are equal numbers where
    equality decides; samples without an answer don't vote.
    """
    metrics = {
        "pass@1": sum(outcome.correct for outcome in outcomes) / len(outcomes),
        f"maj@{len(outcomes)}": float(_majority_is_right(fmt, outcomes)),
    }
    return [replace(outcome, metrics={**outcome.metrics, **metrics}) for outcome in outcomes]


def _majority_is_right(fmt: PromptFormat, outcomes: Sequence[Outcome]) -> bool:
    answered = [outcome for outcome in outcomes if outcome.prediction is not None]
    if not answered:
        return False

    def votes(outcome: Outcome) -> int:
        return sum(_same(fmt, other.prediction, outcome.prediction) for other in answered)

    return max(answered, key=votes).correct


def _same(fmt: PromptFormat, a: str | None, b: str | None) -> bool:
    if a == b or a is None or b is None:
        return a == b
    if not isinstance(fmt, GenerationFormat):
        return False
    number = stated_number(a) if fmt.primary_match == "equal" else None
    return fmt.matches(a, b) or (number is not None and number == stated_number(b))
