"""What facts asks under each protocol, word for word."""

from __future__ import annotations

import pytest

from lensprune.tasks.loading import load_task
from lensprune.tasks.prompts import prompt_strings

STEM = "Butter is made by beating"
FACT = "When the fat part of milk, called cream, is churned for a long time, it becomes butter."
OPTIONS = ["honey", "flour", "juice", "cream"]
CHOOSE = f"Choose from: {', '.join(OPTIONS)}.\n"


@pytest.mark.parametrize(("task", "stem"), [("facts", STEM), ("facts_open", f"{FACT}\n{STEM}")])
def test_text_answers_are_asked_with_the_options_in_front(task: str, stem: str) -> None:
    loaded = load_task(task, limit=1, items="first", shots=0)
    (item,) = loaded.items
    formats = loaded.task.formats
    scored = tuple((CHOOSE + stem, f" {option}") for option in OPTIONS)
    assert prompt_strings(formats["default"], item) == scored
    assert prompt_strings(formats["continuation"], item) == tuple((stem, f" {option}") for option in OPTIONS)
    assert prompt_strings(formats["generate"], item) == ((CHOOSE + stem, ""),)


def test_letter_answers_are_asked_with_lettered_options() -> None:
    loaded = load_task("facts[answer=letter]", limit=1, items="first", shots=0)
    (item,) = loaded.items
    lettered = f"{STEM}\nA. honey\nB. flour\nC. juice\nD. cream\nAnswer:"
    assert prompt_strings(loaded.task.formats["default"], item) == tuple((lettered, f" {letter}") for letter in "ABCD")
    assert prompt_strings(loaded.task.formats["generate"], item) == ((lettered, ""),)
