"""Rank correlations of a handful of parts: exact p-values."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from lensprune.delta.result import _rank_correlation


@pytest.mark.parametrize(
    ("y", "rho", "p"), [([1, 2, 3, 4], 1.0, 2 / 24), ([4, 3, 2, 1], -1.0, 2 / 24), ([2, 1, 4, 3], 0.6, 10 / 24)]
)
def test_four_parts_over_all_orders(y: list[float], rho: float, p: float) -> None:
    assert _rank_correlation(np.arange(4.0), np.array(y)) == pytest.approx((rho, p))


def test_many_parts_take_the_usual_approximation() -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 30))
    assert _rank_correlation(x, y) == pytest.approx(tuple(stats.spearmanr(x, y)))
