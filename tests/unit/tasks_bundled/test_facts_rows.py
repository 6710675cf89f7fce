"""The rows of facts: OpenBookQA's schema, balanced answers, and nothing that gives an answer away."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from lensprune.packaged import data_folder
from lensprune.tasks.sources import read_rows

LETTERS = ["A", "B", "C", "D"]


def rows_of(split: str) -> list[dict[str, Any]]:
    return read_rows(data_folder() / "facts" / f"{split}.jsonl")


def right_text(row: dict[str, Any]) -> str:
    return str(row["choices"]["text"][LETTERS.index(row["answerKey"])])


@pytest.mark.parametrize("split", ["test", "train"])
def test_every_row_is_a_four_choice_question_with_a_fact(split: str) -> None:
    for row in rows_of(split):
        assert set(row) == {"id", "question_stem", "choices", "answerKey", "fact1", "subject"}, row["id"]
        assert row["choices"]["label"] == LETTERS, row["id"]
        options = row["choices"]["text"]
        assert len({option.casefold() for option in options}) == 4, row["id"]
        assert all(text and text == text.strip() for text in (row["question_stem"], row["fact1"], *options)), row["id"]
        assert row["fact1"].endswith("."), row["id"]


def test_there_are_enough_questions_over_enough_subjects() -> None:
    subjects = Counter(row["subject"] for row in rows_of("test"))
    assert subjects.total() >= 200
    assert len(subjects) >= 10
    assert min(subjects.values()) >= 10, subjects


def test_no_question_is_in_both_splits_or_twice() -> None:
    rows = rows_of("test") + rows_of("train")
    assert len({row["id"] for row in rows}) == len(rows)
    assert len({row["question_stem"].casefold() for row in rows}) == len(rows)


def test_the_first_rows_cover_the_letters_and_the_subjects_evenly() -> None:
    """A sweep with a small limit takes the first rows."""
    for limit in (20, 40, 100, 333):
        letters = Counter(row["answerKey"] for row in rows_of("test")[:limit])
        assert max(letters.values()) - min(letters[letter] for letter in LETTERS) <= 2, (limit, letters)
    assert len({row["subject"] for row in rows_of("test")[:20]}) >= 10


def test_the_right_option_is_not_told_by_its_length() -> None:
    """Choosing the longest, or the shortest, option is right about as often as chance."""
    rows = rows_of("test")
    for extreme in (max, min):
        score = 0.0
        for row in rows:
            best = [text for text in row["choices"]["text"] if len(text) == extreme(map(len, row["choices"]["text"]))]
            score += (right_text(row) in best) / len(best)
        assert 0.18 <= score / len(rows) <= 0.32, (extreme.__name__, score / len(rows))


def test_the_fact_helps() -> None:
    """The supporting fact shares words with the right option far more often than with the wrong ones."""
    right, wrong = 0, 0
    for row in rows_of("test"):
        fact = row["fact1"].casefold()
        right += right_text(row).casefold() in fact
        wrong += sum(text.casefold() in fact for text in row["choices"]["text"] if text != right_text(row))
    assert right > 10 * wrong / 3, (right, wrong)
