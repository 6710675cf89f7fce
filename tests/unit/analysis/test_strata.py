"""What `tests/early` simulates on recorded sweeps: items by strata of the clean margin, other looks and orders."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from lensprune.analysis.sequential import Looks
from tests.early.looks import Plan
from tests.early.order import MARGIN, ORDERS, at_margin, rates
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


def test_p_of_one_stratum_against_a_margin_is_that_of_a_binomial() -> None:
    p = stats.binom.sf(6, 60, 0.05) + stats.binom.pmf(6, 60, 0.05) / 2
    assert stratified_p((6,), (60,), (1.0,), (1,), 0.05) == pytest.approx(p, rel=1e-4)
    # All of the stratum can't lose more than its share of the items.
    assert stratified_p((30, 0), (30, 30), (0.04, 0.96), (1, -1), 0.05) == 1


def test_a_plan_of_the_usual_shape_is_planned_looks() -> None:
    p = np.array([[0.4, 0.02, 1e-9, 0.9], [0.3, 0.01, np.nan, np.nan]])
    looks, plan = Looks((40, 80, 200)), Plan((40, 80, 200))
    assert plan.q(p).tolist() == looks.q(p).tolist()
    assert plan.verdicts(p)[1].tolist() == looks.verdicts(p)[1].tolist() == [True, True, False, False]
    # The detected part and the one that is given up have the first block alone, the others go on to the last.
    share, named = plan.replayed(np.array([*np.nan_to_num(p, nan=0.9), [0.3, 0.01, 0.9, 0.9]]))
    assert share == pytest.approx((40 + 200 + 40 + 200) / 800)
    assert named.tolist() == [False, True, True, False]
    # O'Brien and Fleming's boundary is stricter at the first look, Pocock's less so.
    strict, level = (Plan((40, 80, 200), shape=shape).q(p[:1])[2] for shape in (0.0, 0.5))
    assert level < looks.q(p[:1])[2] < strict


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
    sweep = Recorded(right, margin, -lost.astype(float), np.arange(200))
    assert np.bincount(by_quarters(sweep)).tolist() == [50, 50, 50, 50]
    assert (by_rightness(sweep)[~right] == 0).all()
    variance, power = resampled(sweep, by_rightness, 200, 100, 20)
    assert 0.2 < variance < 0.8
    assert power[0, 0] > 0.1
    # The same sweep with losses of the margin, but for the first and the seventh variant, and one sweep's items.
    same = at_margin(sweep)
    assert same.changes.mean(axis=0)[[1, 2, 3, 4, 5, 7]] == pytest.approx(-MARGIN)
    assert (same.changes[:, [0, 6]] == sweep.changes[:, [0, 6]]).all()


@pytest.mark.parametrize("order", ORDERS)
def test_clear_losses_are_detected_early_in_any_order(order: str) -> None:
    generator = np.random.default_rng(0)
    margin, right = generator.random(200), generator.random(200) < 0.8
    lost = (margin < 0.5)[:, None] & right[:, None] & (np.arange(6) < 3)
    items, power, false, _ = rates(Recorded(right, margin, -lost.astype(float), np.arange(200)), 200, order, 4)
    assert 30 <= items <= 60
    assert power == 1
    assert false == 0
