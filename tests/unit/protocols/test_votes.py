"""pass@1 and majority votes, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lensprune.protocols.votes import with_votes
from tests.helpers.made_cells import outcome
from tests.helpers.toy_task import choice_format, generation_format

FORMAT = generation_format()


@pytest.mark.parametrize(
    ("predictions", "right", "share", "majority"),
    [
        (["7", "8", "7"], "7", 2 / 3, 1.0),
        (["8", "8", "7"], "7", 1 / 3, 0.0),
        # The earliest of several that are given as often.
        (["7", "8", "8", "7"], "7", 0.5, 1.0),
        (["8", "7", "7", "8"], "7", 0.5, 0.0),
        # Who gives no answer does not vote.
        ([None, None, "7"], "7", 1 / 3, 1.0),
        ([None, None], "7", 0.0, 0.0),
    ],
)
def test_by_hand(predictions: list[str | None], right: str, share: float, majority: float) -> None:
    outcomes = [outcome(0, p == right, prediction=p, sample=i) for i, p in enumerate(predictions)]
    voted = with_votes(FORMAT, outcomes)
    assert [one.sample for one in voted] == list(range(len(predictions)))
    for before, after in zip(outcomes, voted, strict=True):
        assert after.metrics == {**before.metrics, "pass@1": share, f"maj@{len(predictions)}": majority}
        assert replace(after, metrics=before.metrics) == before


def test_answers_are_the_same_where_the_task_says_so() -> None:
    form = generation_format(matches=lambda a, b: a.strip("$") == b.strip("$"))
    outcomes = [outcome(0, p != "8", prediction=p) for p in ("8", "$7", "7", "8", "7")]
    assert with_votes(form, outcomes)[0].metrics["maj@5"] == 1.0
    assert with_votes(FORMAT, outcomes)[0].metrics["maj@5"] == 0.0
    assert with_votes(choice_format(), outcomes)[0].metrics["maj@5"] == 0.0


def test_equal_numbers_are_the_same_where_equality_decides() -> None:
    outcomes = [outcome(0, p != "8", prediction=p) for p in ("8", "1/2", "0.5", "8", r"\frac{1}{2}", "two")]
    assert with_votes(generation_format(primary_match="equal"), outcomes)[0].metrics["maj@6"] == 1.0
    assert with_votes(FORMAT, outcomes)[0].metrics["maj@6"] == 0.0
