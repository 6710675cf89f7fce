"""Answers found in generated text."""

from __future__ import annotations

import pytest

from lensprune.tasks import GenerationFormat, get_task
from lensprune.tasks.filters import FLEXIBLE_NUMBER, FilterChain, RegexFilter, exact_match, first_line, take_first


def _generation(task: str) -> GenerationFormat:
    fmt = get_task(task).formats["generate"]
    assert isinstance(fmt, GenerationFormat)
    return fmt


def _filtered(task: str, text: str) -> dict[str, str | None]:
    return {one.name: one(text) for one in _generation(task).filters}


@pytest.mark.parametrize(
    ("text", "strict", "flexible"),
    [
        ("9 + 9 = 18\n#### 18", "18", "18"),
        ("#### 18\nthen 20", "18", "20"),
        ("so it is 1,080 dollars.\n#### 1,080", "1,080", "1,080"),
        ("#### -5", "-5", "-5"),
        ("the total is $42.", None, "$42."),
        ("The answer is 7", None, "7"),
        ("####18", None, "18"),
        ("I do not know", None, None),
        ("", None, None),
    ],
)
def test_gsm8k(text: str, strict: str | None, flexible: str | None) -> None:
    assert _filtered("gsm8k", text) == {"strict-match": strict, "flexible-extract": flexible}
    assert _generation("gsm8k").primary_filter == "strict-match"


@pytest.mark.parametrize(
    ("text", "strict"),
    [
        ("3 + 2 = 5. The answer is 5.", "5"),
        ("The answer is 1,200.", "1,200"),
        ("The answer is 5. The answer is 6.", "5"),
        ("#### 5", None),
        ("The answer is five.", None),
    ],
)
@pytest.mark.parametrize("task", ["gsm8k_cot", "svamp"])
def test_chain_of_thought(task: str, text: str, strict: str | None) -> None:
    found = _filtered(task, text)["strict-match"]
    assert (found or "").rstrip(".") == (strict or "")
    assert (found is None) == (strict is None)


@pytest.mark.parametrize(
    ("prediction", "target", "equal"),
    [
        ("18", "9 + 9 = 18\n#### 18", True),
        ("1080", "so\n#### 1,080", True),
        ("$18", "#### 18", True),
        ("18.", "#### 18", True),
        ("18.0", "#### 18", False),
        ("19", "#### 18", False),
        ("118", "#### 18", False),
        ("-18", "#### 18", False),
    ],
)
def test_numbers_are_compared_as_lm_eval_compares_them(prediction: str, target: str, equal: bool) -> None:
    assert _generation("gsm8k").matches(prediction, target) is equal


@pytest.mark.parametrize(
    ("text", "letter", "right", "is_answer"),
    [
        (" B", "B", True, True),
        ("B\nC", "B", True, True),
        ("b.", "B", True, True),
        ("(B)", "B", True, True),
        ("C", "B", False, True),
        ("B because", "B", False, False),
        ("I think", "B", False, False),
        ("", "B", False, False),
    ],
)
def test_letters(text: str, letter: str, right: bool, is_answer: bool) -> None:
    fmt = _generation("mmlu")
    found = fmt.filters[0](text)
    assert found is not None
    assert fmt.matches(found, letter) is right
    assert fmt.is_answer(found) is is_answer


def test_text_below_an_empty_first_line_is_not_the_answer() -> None:
    assert first_line()("\nB") == ""


def test_last_and_first_match() -> None:
    text = "1 then 22 then -3"
    assert RegexFilter("x", r"-?\d+")(text) == "1"
    assert RegexFilter("x", r"-?\d+", group_select=-1)(text) == "-3"
    assert RegexFilter("x", FLEXIBLE_NUMBER, group_select=-1)(text) == "-3"
    assert RegexFilter("x", r"(a)|(b)")("b a") == "b", "the first group that holds something"


def test_a_chain_stops_where_nothing_is_found() -> None:
    chain = FilterChain("x", (RegexFilter("x", r"\d+"), lambda text: pytest.fail(f"went on with {text!r}")))
    assert chain("no number") is None
    assert FilterChain("x", (RegexFilter("x", r"\d+ \w+"), str.upper))("see 3 cats") == "3 CATS"


def test_take_first() -> None:
    assert take_first(["a", "b"]) == "a"
    with pytest.raises(IndexError):
        take_first([])


def test_exact_match_normalises_only_what_it_is_told_to() -> None:
    assert exact_match("Yes", "Yes")
    assert not exact_match("Yes", "yes")
    assert exact_match("Yes", "yes", ignore_case=True)
    assert not exact_match("yes!", "yes")
    assert exact_match("yes!", "yes", ignore_punctuation=True)
    assert exact_match("a1", "a2", ignore_numbers=True)
    assert not exact_match("a1", "b1", ignore_numbers=True)
    assert exact_match("x,1", "1", regexes_to_ignore=(",", "x"))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (" 1234", "1234"),
        (' "1234"', "1234"),
        (" 2a8d601d-1d69-4e64-9f90-8ad825a74195\n", "2a8d601d-1d69-4e64-9f90-8ad825a74195"),
        ("", None),
        (' ""', None),
    ],
)
def test_key_value_retrieval(text: str, value: str | None) -> None:
    assert _generation("kv_retrieval").filters[0](text) == value
