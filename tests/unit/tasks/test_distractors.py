"""Wrong options of open questions: distinct, never right, the same every time."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lensprune.tasks import MultipleChoiceFormat, get_task
from lensprune.tasks.distractors import number_options, parse_number, shuffled_options
from tests.helpers.rows import gsm8k_row

NUMBERS = st.one_of(
    st.integers(-10_000, 10_000_000).map(str),
    st.integers(0, 10_000_000).map(lambda number: f"{number:,}"),
    st.decimals(-1000, 1000, places=2).map(str),
)


@given(question=st.text(max_size=80), gold=NUMBERS, n=st.integers(2, 8))
def test_numbers_are_distinct_and_hold_gold_once(question: str, gold: str, n: int) -> None:
    options, place = number_options(question, gold, n)
    values = [Decimal(option) for option in options]
    assert len(options) == n
    assert len(set(values)) == n, options
    assert values[place] == parse_number(gold)
    assert (options, place) == number_options(question, gold, n)
    if parse_number(gold) >= 0:
        assert min(values) >= 0


def test_options_are_the_stated_ones() -> None:
    stated = {"3", "50", "41", "43", "32", "52", "24", "84", "21"}
    seen: set[str] = set()
    for number in range(200):
        options, place = number_options(f"{'x' * number} 3 boxes of 50", "42")
        assert options.pop(place) == "42"
        seen.update(options)
    assert seen == stated


def test_the_answer_is_at_every_place_equally_often() -> None:
    places = Counter(number_options(gsm8k_row(number)["question"], str(number + 2))[1] for number in range(800))
    assert set(places) == {0, 1, 2, 3}
    assert all(150 <= count <= 250 for count in places.values()), places


def test_another_process_makes_the_same_options() -> None:
    code = "from lensprune.tasks.distractors import number_options; print(number_options('How many of 7?', '12'))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == str(number_options("How many of 7?", "12"))


@pytest.mark.parametrize("text", ["", "x", "12 apples", "1.2.3", "--1"])
def test_not_a_number(text: str) -> None:
    with pytest.raises(ValueError, match="is not a number"):
        parse_number(text)


@pytest.mark.parametrize(("text", "value"), [("1,080", "1080"), ("$5.50", "5.50"), ("20%", "20"), ("-3.", "-3")])
def test_numbers_as_people_write_them(text: str, value: str) -> None:
    assert parse_number(text) == Decimal(value)


@given(others=st.lists(st.text(max_size=3), max_size=12), gold=st.text(max_size=3), n=st.integers(2, 6))
def test_shuffled_options(others: list[str], gold: str, n: int) -> None:
    options, place = shuffled_options("key", gold, others, n)
    assert options[place] == gold
    assert len(set(options)) == len(options) == min(n, len({*others, gold}))
    assert set(options) <= {*others, gold}
    assert (options, place) == shuffled_options("key", gold, others, n)


def test_all_protocols_see_the_same_options() -> None:
    for name in ("gsm8k", "gsm8k_cot"):
        formats = get_task(name).formats
        letter, text = formats["default"], formats["continuation"]
        assert isinstance(letter, MultipleChoiceFormat)
        assert isinstance(text, MultipleChoiceFormat)
        for number in range(20):
            doc = gsm8k_row(number)
            assert letter.gold(doc) == text.gold(doc)
            shown = [f"{mark}. {option}" for mark, option in zip("ABCD", text.choices(doc), strict=True)]
            assert "\n".join(shown) in letter.context(doc)
            assert text.choices(doc)[text.gold(doc)] == str(number + 2)
