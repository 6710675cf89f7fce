"""Both sides of the breakdown test."""

from __future__ import annotations

import uuid

import pytest

from lensprune.protocols.degenerate import LOOP_TESTS, compressed_ratio, is_degenerate, is_looping

SOLUTION = (
    "Roque takes 2*3 = <<2*3=6>>6 hours a week to walk to work.\n"
    "Roque takes 6*2 = <<6*2=12>>12 hours a week to walk to and from work.\n"
    "Roque takes 1*2 = <<1*2=2>>2 hours a week to bike to work.\n"
    "Roque takes 2*2 = <<2*2=4>>4 hours a week to bike to and from work.\n"
    "In total, Roque takes 12+4 = <<12+4=16>>16 hour a week to go to and from work.\n#### 16"
)
STEPS = "\n".join(f"Step {i}: {7 * i} + {3 * i + 1} = {10 * i + 1}" for i in range(1, 12))
NUMBERS = " ".join(str(n * n) for n in range(1, 60))
LONG_ROUND = (
    "The farmer sells nine eggs at the market each day, so we take the eggs she collects, remove those she eats "
    "for breakfast and those she bakes into muffins, and multiply the rest by the price of two dollars. "
)


@pytest.mark.parametrize("text", ["", " \n\t", "\n" * 50])
def test_empty_is_degenerate(text: str):
    assert is_degenerate(text)
    assert not is_looping(text)


@pytest.mark.parametrize(
    "text",
    [
        " A" * 60,
        "The answer is 5. " * 10,
        "a farmer has three sheep and two goats. " * 4,
        SOLUTION + "\n" + "The answer is 16. " * 15,
        LONG_ROUND * 4,
    ],
    ids=["letter", "sentence", "forty letters", "after a solution", "long round"],
)
def test_loops(text: str):
    assert is_looping(text)
    assert is_degenerate(text)


@pytest.mark.parametrize(
    "text",
    [
        "A",
        "no no no no",
        "18",
        " A" * 30,
        "The answer is 5. " * 4,
        SOLUTION,
        STEPS,
        NUMBERS,
        LONG_ROUND,
        str([str(uuid.UUID(int=n * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128)) for n in range(1, 9)]),
    ],
    ids=["A", "no", "18", "short", "below floor", "solution", "steps", "numbers", "long round once", "uuids"],
)
def test_no_loops(text: str):
    assert not is_degenerate(text)


def test_the_floor_is_where_the_test_begins():
    _, floor, _ = LOOP_TESTS[0]
    assert not is_looping("x" * (floor - 1))
    assert is_looping("x" * floor)


def test_compressed_ratio_of_what_cannot_be_compressed():
    assert compressed_ratio(bytes(range(200))) > 1
    assert compressed_ratio(b"a" * 1000) < 0.05
