"""Rank correlations of a handful of parts: exact p-values."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from lensprune.analysis.overlap import spearman


@pytest.mark.parametrize(
    ("y", "rho", "p"), [([1, 2, 3, 4], 1.0, 2 / 24), ([4, 3, 2, 1], -1.0, 2 / 24), ([2, 1, 4, 3], 0.6, 10 / 24)]
)
def test_four_parts_over_all_orders(y: list[float], rho: float, p: float) -> None:
    # One p-value is a share of permutations, the other an approximation by t.
    assert spearman(np.arange(4.0), np.array(y)) == pytest.approx((rho, p))


@pytest.mark.parametrize(("n", "orders"), [(7, 5040), (8, 40320)])
def test_a_perfect_order_is_one_of_all(n: int, orders: int) -> None:
    # One p-value is a share of permutations, the other an approximation by t.
    assert spearman(np.arange(n), np.arange(n)) == pytest.approx((1.0, 2 / orders))


def test_a_perfect_order_of_many_parts_has_no_p_of_zero() -> None:
    """2 / 9! of the orders are as extreme: hardly one of 10,000 random ones."""
    rho, p = spearman(np.arange(9), -np.arange(9))
    assert rho == pytest.approx(-1)
    assert 1 / 10_001 <= p < 4 / 10_001


def test_many_parts_come_close_to_the_usual_approximation() -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 30))
    expected = stats.spearmanr(x, y)
    # One p-value is a share of permutations, the other an approximation by t.
    assert spearman(x, y) == pytest.approx((expected.statistic, expected.pvalue), abs=0.02)
