"""When a model counts as guessing."""

from __future__ import annotations

import numpy as np
import pytest

from lensprune.runs.chance import at_chance


@pytest.mark.parametrize(
    ("right", "n", "chance", "expected"),
    [
        (9, 20, 0.25, False),  # P(X ≥ 9) = 0.0409
        (8, 20, 0.25, True),  # P(X ≥ 8) = 0.1018
        (5, 20, 0.25, True),
        (0, 20, 0.25, True),
        (15, 20, 0.5, False),  # P(X ≥ 15) = 0.0207
        (14, 20, 0.5, True),  # P(X ≥ 14) = 0.0577
        (0, 20, 0.0, True),
        (1, 20, 0.0, True),
        (2, 20, 0.0, False),
    ],
)
def test_at_chance_by_binomial_tables(right: int, n: int, chance: float, expected: bool) -> None:
    correct = np.arange(n) < right
    assert at_chance(correct, np.full(n, chance)) is expected


def test_at_chance_with_unequal_chances() -> None:
    # Chances ½ and ¼ (two items): P(both right) = 1/8, so two of two are no evidence.
    assert at_chance(np.array([True, True]), np.array([0.5, 0.25]))
    # Four items of ¼ and one of ½: P(all five right) = 1/512.
    assert not at_chance(np.ones(5, bool), np.array([0.25, 0.25, 0.25, 0.25, 0.5]))


def test_no_items_are_at_chance() -> None:
    assert at_chance(np.zeros(0, bool), np.zeros(0))
