"""Answers as chat models state them: boxes, fractions, units, letters."""

from __future__ import annotations

from fractions import Fraction

import pytest

from lensprune.errors import UserError
from lensprune.protocols.requests import GenerateResponse
from lensprune.protocols.scoring import score_generation
from lensprune.tasks import find_task
from lensprune.tasks.base import GenerationFormat, Item
from lensprune.tasks.primary import with_primary_metric
from lensprune.tasks.stated import BoxedFilter, StatedLetter, stated_number


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"So \boxed{42}.", "42"),
        (r"\boxed{1} or rather \boxed{ \frac{3}{4} }", r"\frac{3}{4}"),
        (r"\fbox{no} $\boxed{\text{a \{ brace}}$", r"\text{a \{ brace}"),
        (r"\boxed {7}", "7"),
        (r"\boxed{1} then \boxed{cut o", "1"),
        (r"\boxed{{{1}}}", "{{1}}"),
        (r"\boxed{cut o", None),
        ("boxed 42", None),
        ("", None),
    ],
)
def test_the_last_whole_box(text: str, content: str | None) -> None:
    assert BoxedFilter()(text) == content


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("42", Fraction(42)),
        ("**42**", Fraction(42)),
        ("42.", Fraction(42)),
        ("$1,234.50", Fraction(2469, 2)),
        (r"\$1{,}234.50", Fraction(2469, 2)),
        ("18 dollars", Fraction(18)),
        (r"18\text{ km/h}", Fraction(18)),
        (r"\text{18}", Fraction(18)),
        ("x = -3/4", Fraction(-3, 4)),
        (r"-\frac{3}{4}", Fraction(-3, 4)),
        (r"\dfrac12", Fraction(1, 2)),
        ("1 1/2", Fraction(3, 2)),
        (r"2\frac{1}{4}", Fraction(9, 4)),
        ("0.75", Fraction(3, 4)),
        (".75", Fraction(3, 4)),
        (r"50\%", Fraction(50)),
        ("−5", Fraction(-5)),
        (r"\left(42\right)", Fraction(42)),
        ("3 + 4 = 7", Fraction(7)),
        ("3½", Fraction(7, 2)),
        ("½", Fraction(1, 2)),
        ("-2¾ km", Fraction(-11, 4)),
        ("1⁄2", Fraction(1, 2)),
        ("1.5 million", Fraction(1_500_000)),
        ("$2 Billion", Fraction(2 * 10**9)),
        ("3 hundred thousand people", Fraction(300_000)),
        ("1/2 million", Fraction(500_000)),
        ("18 thousandths", Fraction(18)),
        (r"18 \text{ cm}^2", Fraction(18)),
        (r"18\text{ m}^{3}", Fraction(18)),
        (r"90^\circ", Fraction(90)),
        (r"90^{\circ}", Fraction(90)),
        ("18 m²", Fraction(18)),
        ("3 dozen", Fraction(3)),
        ("7 quarters", Fraction(7)),
        ("5!", None),
        ("5²", None),
        (r"2\text{ and }3^2", None),
        (r"\text{2}^2", None),
        ("5k", None),
        ("$1.5M", None),
        ("2 and a half", None),
        ("1 and three quarters", None),
        ("half of 6", None),
        ("3 or 4", None),
        ("3-4", None),
        ("1,2345", None),
        ("2^{10}", None),
        (r"3 \times 10^5", None),
        ("1e5", None),
        ("1/0", None),
        ("v1", None),
        ("seven", None),
        ("", None),
    ],
)
def test_the_one_number_of_a_text(text: str, number: Fraction | None) -> None:
    assert stated_number(text) == number


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("A is too hot, C too cold.\nAnswer: (B)", "B"),
        ("The answer is A, I first thought. No: the answer is **C**.", "C"),
        (r"So $\boxed{\text{D}}$", "D"),
        (r"The answer is \boxed{B}.", "B"),
        ("The answer is b because it is", "B"),
        ("**B.**", "B"),
        ("Let me see.\n(B)", "B"),
        ("Answer: B. sulphur", "B"),
        ("the answer is a good one", None),
        ("Answer: (B). Option D is the runner-up.", "B"),
        ("The correct answer is option C: choice B is too small", "C"),
        ("I would take option C.", "C"),
        ("the answer is I think, hard", None),
        ("Answer: Because", None),
        ("I think so", None),
    ],
)
def test_the_letter_that_is_stated_last(text: str, letter: str | None) -> None:
    assert StatedLetter()(text) == letter


def gsm8k(answer: str, primary: str | None = None) -> tuple[dict[str, float], bool, str | None]:
    task = find_task("gsm8k") if primary is None else with_primary_metric(find_task("gsm8k"), primary)
    fmt = task.formats["generate"]
    assert isinstance(fmt, GenerationFormat)
    item = Item("0", {"question": "How much?", "answer": "18 / 4 = 4.5\n#### 4.50"})
    outcome = score_generation(fmt, item, GenerateResponse(answer, (1,), "eos"))
    return dict(outcome.metrics), outcome.correct, outcome.prediction


def test_metrics_beside_lm_evals() -> None:
    metrics, correct, _ = gsm8k(r"That makes $\boxed{\frac{9}{2}}$ dollars.")
    assert not correct
    assert metrics == {
        "exact_match,strict-match": 0.0,
        "exact_match,flexible-extract": 0.0,
        "exact_match,boxed": 0.0,
        "equal,strict-match": 0.0,
        "equal,flexible-extract": 0.0,
        "equal,boxed": 1.0,
        "last_number": 0.0,
    }
    metrics, correct, _ = gsm8k("#### 4.5")
    assert not correct
    assert (metrics["exact_match,strict-match"], metrics["equal,strict-match"]) == (0.0, 1.0)
    metrics, correct, _ = gsm8k("#### 4.50")
    assert correct
    assert (metrics["exact_match,strict-match"], metrics["equal,strict-match"]) == (1.0, 1.0)


def test_the_metric_that_is_chosen_decides() -> None:
    said = r"\boxed{\frac{9}{2}} #### 5"
    assert gsm8k(said)[1:] == (False, "5")
    assert gsm8k(said, "exact_match,boxed")[1:] == (False, r"\frac{9}{2}")
    assert gsm8k(said, "equal,boxed")[1:] == (True, r"\frac{9}{2}")
    with pytest.raises(UserError, match="unknown primary metric of task 'gsm8k' 'equal,box': did you mean equal,boxed"):
        gsm8k(said, "equal,box")


def test_letters_keep_lm_evals_metric_beside_the_one_stated() -> None:
    fmt = find_task("openbookqa").formats["generate"]
    assert isinstance(fmt, GenerationFormat)
    item = Item(
        "0", {"question_stem": "Which?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B"}
    )
    outcome = score_generation(fmt, item, GenerateResponse("It is hot, so\nAnswer: (B)", (1,), "eos"))
    assert not outcome.correct
    assert (outcome.metrics["exact_match,get_response"], outcome.metrics["exact_match,stated"]) == (0.0, 1.0)
    task = with_primary_metric(find_task("openbookqa"), "exact_match,stated")
    chosen = task.formats["generate"]
    assert isinstance(chosen, GenerationFormat)
    assert score_generation(chosen, item, GenerateResponse("So\nAnswer: (B)", (1,), "eos")).correct
