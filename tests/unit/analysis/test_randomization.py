"""Sign flips against enumeration and the binomial law, and what two stages of draws can reach."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import stats

from lensprune.analysis.multiplicity import benjamini_hochberg
from lensprune.analysis.randomization import sign_flip_p, two_stage_p


def enumerated(values: np.ndarray) -> float:
    sums = [abs(np.dot(signs, values)) for signs in product((-1, 1), repeat=len(values))]
    return float(np.mean(np.array(sums) >= abs(values.sum()) - 1e-9))


def test_few_items_by_hand() -> None:
    columns = np.array([[1.0, 0.0, 1.0], [1.0, 0.0, -1.0], [1.0, 0.0, 0.0]])
    assert sign_flip_p(columns) == pytest.approx([2 / 8, 1, 1])


@pytest.mark.parametrize("n", [1, 2, 7, 11])
def test_integers_and_other_numbers_against_all_patterns(n: int) -> None:
    generator = np.random.default_rng(n)
    whole = generator.integers(-3, 4, size=(n, 6)).astype(float)
    other = generator.normal(0.4, 1, size=(n, 6))
    for columns in (whole, other, whole / 3):
        assert sign_flip_p(columns) == pytest.approx([enumerated(column) for column in columns.T])


@pytest.mark.parametrize(("lost", "won"), [(18, 6), (40, 60), (100, 0), (5, 5), (700, 300)])
def test_losses_and_gains_of_one_have_the_binomial_law(lost: int, won: int) -> None:
    column = np.repeat([-1.0, 0.0, 1.0], [lost, 50, won])[:, None]
    expected = stats.binomtest(lost, lost + won).pvalue
    assert sign_flip_p(column)[0] == pytest.approx(expected, rel=1e-9)


def test_a_column_depends_on_no_other() -> None:
    generator = np.random.default_rng(0)
    for columns in (generator.integers(-2, 3, size=(60, 5)).astype(float), generator.normal(0.1, 1, size=(60, 5))):
        together = sign_flip_p(columns, tests=5)
        assert sign_flip_p(columns[:, ::-1], tests=5)[::-1] == pytest.approx(together, abs=0)
        assert sign_flip_p(columns[:, 2:3], tests=5) == pytest.approx(together[2:3], abs=0)


def test_one_lost_head_among_a_thousand_is_found() -> None:
    """One of 1,024 heads loses all of 100 items under one protocol and none under the other; the rest is noise."""
    differences = np.random.default_rng(1).choice([-1.0, 0.0, 1.0], p=[0.02, 0.96, 0.02], size=(100, 1024))
    differences[:, 0] = -1
    p_values = sign_flip_p(differences)
    assert p_values[0] == pytest.approx(2.0**-99)
    assert list(np.flatnonzero(benjamini_hochberg(p_values) <= 0.05)) == [0]


def test_one_effect_in_nats_among_thousands_is_found() -> None:
    differences = np.random.default_rng(2).normal(0, 0.05, size=(40, 270))
    differences[:, 3] += 5
    p_values = sign_flip_p(differences, tests=2430, flips=2000)
    assert p_values[3] == pytest.approx(1 / (1 + 400 * 2430))
    assert list(np.flatnonzero(p_values * 2430 <= 0.05)) == [3]


def test_p_is_uniform_without_an_effect() -> None:
    """In the middle and in the tail, on both sides of where the second stage takes over (11 / 201)."""
    differences = np.random.default_rng(3).normal(size=(20, 4000))
    p_values = sign_flip_p(differences, tests=50, flips=200)
    for level in (0.005, 0.03, 0.05, 0.2, 0.5):
        expected = level + 3 * np.sqrt(level * (1 - level) / 4000)
        assert np.mean(p_values <= level) < expected
        assert np.mean(p_values <= level) > level - 4 * np.sqrt(level * (1 - level) / 4000)


def test_the_second_stage_is_asked_where_few_are_beyond_and_alone_decides() -> None:
    asked = []

    def beyond(columns: np.ndarray, draws: int, stage: int) -> np.ndarray:
        asked.append((columns.tolist(), draws, stage))
        return np.array([[0, 10, 11], [7, 3, 0]][stage])[columns]

    p_values = two_stage_p(beyond, 3, draws=100, tests=2)
    assert asked == [([0, 1, 2], 100, 0), ([0, 1], 800, 1)]
    assert p_values == pytest.approx([8 / 801, 4 / 801, 12 / 101])


def test_unknown_differences_have_no_p() -> None:
    columns = np.array([[1.0, np.nan, np.inf], [1.0, 1.0, 1.0]])
    assert sign_flip_p(columns) == pytest.approx([0.5, np.nan, np.nan], nan_ok=True)


def test_no_p_is_zero() -> None:
    assert 0 < sign_flip_p(np.ones((3000, 1)))[0] < 1e-300


@pytest.mark.parametrize("n", [2, 9, 60])
def test_one_sided_p_of_integers_and_other_numbers(n: int) -> None:
    generator = np.random.default_rng(n)
    columns = generator.integers(-2, 4, size=(n, 4)).astype(float)
    other = columns + generator.normal(0, 0.1, size=columns.shape)
    if n < 10:
        for values in (columns, other):
            signs = np.array(list(product((-1, 1), repeat=n)))
            expected = ((signs @ values) >= values.sum(axis=0) - 1e-9).mean(axis=0)
            assert sign_flip_p(values, alternative="greater") == pytest.approx(expected)
    else:
        greater, lower = (sign_flip_p(sign * other, alternative="greater", flips=4000) for sign in (1, -1))
        assert greater + lower == pytest.approx(1, abs=0.03)
        assert np.minimum(greater, lower) * 2 == pytest.approx(sign_flip_p(other, flips=4000), abs=0.03)
