"""Sampling of items by strata of the clean margin, as `python -m tests.early.strata` simulates it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from tests.early.strata import Recorded, allocate, by_quarters, by_rightness, resampled, stratified_p


def test_items_are_allocated_by_size_and_spread() -> None:
    sizes = np.array([50, 50, 100])
    # 50 · 0.3 : 50 · 0.1 : 0 share what the smallest tenth of the third leaves.
    assert allocate(sizes, np.array([0.3, 0.1, 0.0]), 50).tolist() == [30, 10, 10]
    # The first is measured whole, the second has the rest.
    assert allocate(sizes, np.array([0.9, 0.1, 0.0]), 90).tolist() == [50, 30, 10]


def test_p_of_two_equal_strata_is_that_of_two_binomials_with_one_share() -> None:
    n, lost, won = 40, 9, 2
    share = (lost + won) / (2 * n)
    counts = stats.binom.pmf(np.arange(n + 1), n, share)
    chance = np.outer(counts, counts)
    difference = np.subtract.outer(np.arange(n + 1), np.arange(n + 1))
    p = chance[difference > lost - won].sum() + chance[difference == lost - won].sum() / 2
    assert stratified_p((lost, won), (n, n), (0.5, 0.5), (1, -1)) == pytest.approx(p, rel=1e-4)
    assert stratified_p((2, 2), (n, n), (0.5, 0.5), (1, -1)) == 1


def test_the_size_of_p_is_little_above_its_level() -> None:
    """Wrong items of which 18% are won, and thirds of right ones of which 9%, 2.5% and 0.5% are lost: 0 on balance."""
    generator, n = np.random.default_rng(0), (24, 40, 24, 12)
    share, weight = np.array([0.18, 0.09, 0.025, 0.005]), (0.2, 0.32, 0.24, 0.24)
    sign = (-1, 1, 1, 1)
    assert np.array(sign) * share @ weight == pytest.approx(0, abs=1e-9)
    drawn = generator.binomial(n, share, size=(2000, 4)).tolist()
    p = np.array([stratified_p(tuple(row), n, weight, sign) for row in drawn])
    for level in (0.05, 0.01):
        assert 0.2 * level < (p <= level).mean() <= 1.4 * level


def test_strata_help_where_only_items_near_the_boundary_change() -> None:
    generator = np.random.default_rng(0)
    margin, right = generator.random(200), generator.random(200) < 0.8
    lost = (generator.random((200, 8)) < 0.3) & (margin < 0.25)[:, None] & right[:, None]
    sweep = Recorded(right, margin, -lost.astype(float))
    assert np.bincount(by_quarters(sweep)).tolist() == [50, 50, 50, 50]
    assert (by_rightness(sweep)[~right] == 0).all()
    variance, rates = resampled(sweep, by_rightness, 200, 100, 20)
    assert 0.2 < variance < 0.8
    assert rates[0, 0] > 0.1
