"""One made-up row per task, and the answer that a reader of the row would call right."""

from __future__ import annotations

from typing import Any

import pytest

from lensprune.tasks import GenerationFormat, MultipleChoiceFormat, get_task

ROWS: list[tuple[str, dict[str, Any], list[str], int]] = [
    ("boolq", {"passage": "Ice is cold.", "question": "is ice cold", "label": 1}, ["no", "yes"], 1),
    (
        "commonsense_qa",
        {
            "question": "Where do fish live?",
            "choices": {"text": list("vwxyz"), "label": list("ABCDE")},
            "answerKey": "B",
        },
        list("vwxyz"),
        1,
    ),
    (
        "hellaswag",
        {"activity_label": "Tea", "ctx_a": "He boils", "ctx_b": "water", "endings": list("wxyz"), "label": "2"},
        list("wxyz"),
        2,
    ),
    (
        "mathqa",
        {"Problem": "1 + 2 ?", "options": "a ) 38 , b ) 3 , c ) 4.5 , d ) 7 , e ) none", "correct": "b"},
        ["38", "3", "4.5", "7", "none"],
        1,
    ),
    ("mmlu", {"question": "1 + 1?", "subject": "anatomy", "choices": list("wxyz"), "answer": 3}, list("wxyz"), 3),
]


@pytest.mark.parametrize(("name", "row", "options", "gold"), ROWS, ids=[row[0] for row in ROWS])
def test_right_option(name: str, row: dict[str, Any], options: list[str], gold: int) -> None:
    formats = get_task(name).formats
    text, letter, written = formats["continuation"], formats["default"], formats["generate"]
    assert isinstance(text, MultipleChoiceFormat)
    assert isinstance(letter, MultipleChoiceFormat)
    assert isinstance(written, GenerationFormat)
    assert (list(text.choices(row)), text.gold(row)) == (options, gold)
    assert letter.gold(row) == gold
    assert written.target(row) == "ABCDE"[gold]


def test_winogrande() -> None:
    row = {"sentence": "Al met Bo, so _ waved.", "option1": "Al", "option2": "Bo", "answer": "2"}
    for protocol in ("default", "continuation"):
        fmt = get_task("winogrande").formats[protocol]  # type: ignore[index]
        assert isinstance(fmt, MultipleChoiceFormat)
        assert fmt.gold(row) == 1


def test_the_last_mark_of_a_worked_answer_counts() -> None:
    fmt = get_task("gsm8k").formats["generate"]
    assert isinstance(fmt, GenerationFormat)
    assert fmt.display_gold({"question": "?", "answer": "#### is a mark\n#### 1,080"}) == "1080"
