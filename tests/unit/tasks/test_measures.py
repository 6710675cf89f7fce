"""How a reader would take a written answer."""

from __future__ import annotations

import logging
from decimal import Decimal

import pytest

from lensprune.protocols import GenerateResponse, Outcome
from lensprune.protocols.scoring import score_generation
from lensprune.sweeps.cells import warn_of_one_answer
from lensprune.tasks import GenerationFormat, get_task, load_task
from lensprune.tasks.measures import contains, last_number, letter_or_text

OPTIONS = ["ice", "dry ice", "the sun", "A fire"]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3 + 4 = 7. So she has 7.", 7),
        ("It costs $1,234.50!", Decimal("1234.50")),
        ("**42**", 42),
        ("about 50%", 50),
        ("x = -5", -5),
        ("minus −5", -5),
        ("3-4", 4),
        ("none", None),
        ("GPT4 v2a", None),
    ],
)
def test_last_number(text: str, number: int | None) -> None:
    assert last_number(text) == number


@pytest.mark.parametrize(
    ("text", "option"),
    [
        ("B", 1),
        (" B. dry ice", 1),
        ("**C**", 2),
        ("(D) because", 3),
        ("The answer is B.", 1),
        ("Answer: c", 2),
        ("I think that the sun is hottest", 2),
        ("It must be dry ice", 1),
        ("A fire is hot", 3),
        ("Either ice or the sun", None),
        ("A good question", None),
        ("The answer is Z", None),
        ("nice", None),
        ("", None),
    ],
)
def test_letter_or_text(text: str, option: int | None) -> None:
    assert letter_or_text(text, OPTIONS) == option


def test_contains() -> None:
    assert contains("The value is AB12.", "ab12")
    assert not contains("The value is AB1.", "ab12")
    assert not contains("x", "")


def _scored(task: str, text: str) -> Outcome:
    item = load_task(task, limit=1, shots=0).items[0]
    fmt = get_task(task).formats["generate"]
    assert isinstance(fmt, GenerationFormat)
    written = text.format(answer=fmt.display_gold(item.doc))
    return score_generation(fmt, item, GenerateResponse(text=written, token_ids=(1,), stop_reason="eos"))


@pytest.mark.parametrize(
    ("task", "text", "metric"),
    [
        ("kv_retrieval", "The value is {answer}.", "contains_value"),
        ("arithmetic", "The sum of both is {answer}.", "last_number"),
        ("facts[answer=letter]", "The answer is {answer}.", "letter_or_text"),
    ],
)
def test_a_right_answer_in_a_sentence_is_counted_beside_ours(task: str, text: str, metric: str) -> None:
    outcome = _scored(task, text)
    assert outcome.metrics[metric] == 1.0
    assert not outcome.correct or metric == "last_number"
    assert _scored(task, "Nothing at all.").metrics[metric] == 0.0


def _outcome(prediction: str, correct: bool) -> Outcome:
    return Outcome("0", None, "x", prediction, correct, None, None, "none", 1, "", {"contains_value": 0.5})


def test_one_string_from_most_answers_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    wrong, right = _outcome("The", False), _outcome("x", True)
    with caplog.at_level(logging.WARNING, "lensprune"):
        warn_of_one_answer("kv", "generate", [wrong, wrong, right, right])
        warn_of_one_answer("kv", "generate", [right] * 9)
        warn_of_one_answer("kv", "generate", [wrong] * 3)
        assert not caplog.messages
        warn_of_one_answer("kv", "generate", [wrong, wrong, wrong, right, right])
    (message,) = caplog.messages
    assert message.startswith("task 'kv', generate: ")
    assert "'The' is extracted from 3 of the clean model's 5 answers and right in 0" in message
    assert "contains_value 0.500" in message
