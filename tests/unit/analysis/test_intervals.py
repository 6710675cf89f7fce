"""Intervals: known answers, another implementation's equations, and coverage by enumeration."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from lensprune.analysis.intervals import bootstrap_means, centred_quantiles, mean_intervals, tango


def profile_z(lost: int, won: int, n: int, delta: float) -> float:
    """The score statistic with P(lost) found by maximising the likelihood numerically."""

    def minus_log_likelihood(q: float) -> float:
        parts = ((won, q + delta), (lost, q), (n - won - lost, 1 - 2 * q - delta))
        return -sum(count * np.log(max(rate, 1e-300)) for count, rate in parts if count)

    edges = max(0.0, -delta), (1 - delta) / 2
    q = optimize.minimize_scalar(minus_log_likelihood, bounds=edges, method="bounded", options={"xatol": 1e-12}).x
    return float((won - lost - n * delta) / np.sqrt(n * (2 * q + delta - delta**2)))


@pytest.mark.parametrize(("lost", "won", "n"), [(1, 0, 50), (7, 2, 40), (0, 12, 12), (3, 3, 10), (20, 1, 25)])
def test_tango_ends_where_the_score_is_a_normal_quantile(lost: int, won: int, n: int) -> None:
    low, high = (float(end[0]) for end in tango(np.array([lost]), np.array([won]), n))
    if low > -1:
        assert profile_z(lost, won, n, low) == pytest.approx(1.96, abs=2e-3)
    if high < 1:
        assert profile_z(lost, won, n, high) == pytest.approx(-1.96, abs=2e-3)
    assert low > -1 or high < 1


def outcomes(lost: int, won: int, n: int) -> np.ndarray:
    return np.repeat([-1.0, 1.0, 0.0], [lost, won, n - lost - won])[:, None]


def test_one_loss_of_fifty_leaves_a_gain_open() -> None:
    result = mean_intervals(outcomes(1, 0, 50))
    assert (result.low[0], result.high[0]) == pytest.approx((-0.105, 0.053), abs=1e-3)
    assert result.p_negative[0] == pytest.approx(stats.norm.cdf(-1))


@pytest.mark.slow
@pytest.mark.parametrize("n", [12, 20, 50, 100, 300])
def test_coverage_of_independent_outcomes_by_enumeration(n: int) -> None:
    """Over every possible (lost, won), weighted by its multinomial probability."""
    lost, won = (grid.ravel() for grid in np.meshgrid(np.arange(n + 1), np.arange(n + 1)))
    lost, won = lost[lost + won <= n], won[lost + won <= n]
    low, high = tango(lost, won, n)
    for count in np.flatnonzero((lost + won == 0) | (lost == n) | (won == n)):
        own = mean_intervals(outcomes(int(lost[count]), int(won[count]), n))
        low[count], high[count] = own.low[0], own.high[0]
    rates = (0.0, 0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 0.9)
    cells = np.stack([lost, won, n - lost - won], axis=1)
    found = {}
    for loss in rates:
        for gain in (rate for rate in rates if rate + loss <= 0.999):
            weights = stats.multinomial.pmf(cells, n, [loss, gain, 1 - loss - gain])
            assert weights.sum() == pytest.approx(1)
            inside = (low <= gain - loss + 1e-9) & (gain - loss <= high + 1e-9)
            found[loss, gain] = float(weights[inside].sum())
    assert min(found.values()) >= 0.93, min(found, key=lambda rates: found[rates])


def test_students_t_is_scipys() -> None:
    values = np.random.default_rng(0).normal(0.2, 0.1, size=(9, 3))
    result = mean_intervals(values, bounds=None)
    for column in range(3):
        expected = stats.ttest_1samp(values[:, column], 0)
        interval = expected.confidence_interval(0.95)
        assert (result.low[column], result.high[column]) == pytest.approx((interval.low, interval.high))
        assert result.p_negative[column] == pytest.approx(stats.t.cdf(expected.statistic, 8))
    assert result.n_units == 9


def test_clusters_move_together_and_widen_the_interval() -> None:
    # Ten clusters of ten equal items: only ten independent units, −1 three times.
    differences = np.repeat([-1.0] * 3 + [0.0] * 7, 10)[:, None]
    clusters = np.repeat(np.arange(10), 10)
    clustered, plain = mean_intervals(differences, clusters), mean_intervals(differences)
    assert clustered.n_units == 10
    assert clustered.delta == plain.delta == pytest.approx(-0.3)
    interval = stats.ttest_1samp(differences[::10, 0], 0).confidence_interval(0.95)
    assert (clustered.low[0], clustered.high[0]) == pytest.approx((interval.low, interval.high))
    assert clustered.high[0] - clustered.low[0] > 2 * (plain.high[0] - plain.low[0])
    assert clustered.p_negative[0] > 0.025 > plain.p_negative[0]


def test_unequal_clusters_use_the_ratio_of_sums() -> None:
    # Units (sum, size) = (−3, 3), (0, 1), (−1, 2): mean −4/6; shares h 1/2, 1/6, 1/3; mean residuals r −1/3, 2/3, 1/6.
    # Σ h² r² / (1 − h) = 1/18 + 2/135 + 1/216; effective number of clusters 1 / Σ h² = 18/7.
    differences = np.array([[-1.0], [-1.0], [-1.0], [0.0], [-1.0], [0.0]])
    result = mean_intervals(differences, np.array([0, 0, 0, 1, 2, 2]))
    half = stats.t.ppf(0.975, 18 / 7 - 1) * np.sqrt(1 / 18 + 2 / 135 + 1 / 216)
    assert result.delta[0] == pytest.approx(-2 / 3)
    assert (result.low[0], result.high[0]) == pytest.approx((-1, min(1, -2 / 3 + half)))


def test_clusters_that_happen_to_agree_are_no_better_than_items() -> None:
    """Every cluster lost one of two, so that its mean says −0.5 without any spread."""
    differences = np.array([[-1.0], [0.0]] * 5)
    clustered, plain = mean_intervals(differences, np.repeat(np.arange(5), 2)), mean_intervals(differences)
    unseen = 1 - 0.025 ** (1 / 5)
    assert clustered.low[0] == pytest.approx(min(plain.low[0], -0.5 - 0.5 * unseen))
    assert clustered.high[0] == pytest.approx(max(plain.high[0], -0.5 + 1.5 * unseen))


@pytest.mark.parametrize("n_clusters", [2, 3, 5, 8, 15])
def test_coverage_of_clusters_by_simulation(n_clusters: int) -> None:
    """Each cluster has its own rate of loss (beta, mean 0.3, intra-cluster correlation 0.1)."""
    generator, size, runs = np.random.default_rng(n_clusters), 60 // n_clusters, 2000
    rates = generator.beta(0.3 * 9, 0.7 * 9, size=(n_clusters, runs))
    lost = generator.random((n_clusters * size, runs)) < np.repeat(rates, size, axis=0)
    result = mean_intervals(-lost.astype(float), np.repeat(np.arange(n_clusters), size))
    assert np.mean((result.low <= -0.3) & (result.high >= -0.3)) >= 0.93


@pytest.mark.parametrize("sizes", [[40, 8, 6, 4, 3, 2, 2, *[1] * 8], [50, *[5] * 9], [30, *[1] * 30]])
def test_coverage_of_unequal_clusters_by_simulation(sizes: list[int]) -> None:
    """One cluster holds about half of the items; without leverage and effective number coverage is 0.80 to 0.84."""
    generator, runs = np.random.default_rng(len(sizes)), 2000
    clusters = np.repeat(np.arange(len(sizes)), sizes)
    rates = generator.beta(1, 4, size=(len(sizes), runs))
    result = mean_intervals(-(generator.random((len(clusters), runs)) < rates[clusters]).astype(float), clusters)
    assert np.mean((result.low <= -0.2) & (result.high >= -0.2)) >= 0.93


def test_the_variance_of_unequal_clusters_is_that_of_least_squares() -> None:
    """CR2 of an intercept (Bell & McCaffrey 2002) by matrices, whose adjustment is the inverse root of I − H of each
    cluster."""
    sizes, generator = np.array([7, 3, 2, 1]), np.random.default_rng(1)
    clusters, n = np.repeat(np.arange(4), sizes), 13
    values = generator.normal(size=n)
    meat = 0.0
    for cluster in range(4):
        inside = clusters == cluster
        values_of, vectors = np.linalg.eigh(np.eye(inside.sum()) - 1 / n)
        meat += float((vectors @ (vectors.T @ (values - values.mean())[inside] / np.sqrt(values_of))).sum()) ** 2
    half = stats.t.ppf(0.975, n**2 / (sizes**2).sum() - 1) * np.sqrt(meat) / n
    result = mean_intervals(values[:, None], clusters, bounds=None)
    assert half > mean_intervals(values[:, None], bounds=None).high[0] - values.mean()
    assert (result.low[0], result.high[0]) == pytest.approx((values.mean() - half, values.mean() + half))


def test_one_cluster_falls_back_on_items() -> None:
    differences = np.array([[-1.0], [0.0], [0.0], [-1.0]])
    one, none = mean_intervals(differences, np.zeros(4, int)), mean_intervals(differences)
    assert one.n_units == 4
    assert (one.low[0], one.high[0]) == (none.low[0], none.high[0])


def test_no_change_gives_the_exact_interval_of_no_event() -> None:
    result = mean_intervals(np.zeros((20, 1)))
    bound = 1 - 0.025 ** (1 / 20)
    assert (result.delta[0], result.low[0], result.high[0]) == (0.0, pytest.approx(-bound), pytest.approx(bound))
    assert result.p_negative[0] == 1


def test_the_interval_of_no_event_has_the_scale_of_what_differs() -> None:
    bound = 1 - 0.025 ** (1 / 20)
    gap = mean_intervals(np.zeros((20, 1)), bounds=(-2, 2))
    assert (gap.low[0], gap.high[0]) == pytest.approx((-2 * bound, 2 * bound))
    share = mean_intervals(np.ones((6, 1)), bounds=(0, 1))
    assert (share.low[0], share.high[0]) == pytest.approx((0.025 ** (1 / 6), 1))
    nats = mean_intervals(np.array([[0.0, -0.3, 0.0], [0.0, -0.3, -0.4]]), bounds=None)
    assert nats.delta == pytest.approx([0, -0.3, -0.2])
    assert np.isnan(nats.low).tolist() == np.isnan(nats.high).tolist() == [True, True, False]


def test_all_lost_gives_the_exact_bound() -> None:
    """The Clopper–Pearson bound: at least a share 0.025^(1/n) is lost, and the others may be won."""
    lost = stats.binomtest(10, 10).proportion_ci(0.95, method="exact").low
    result = mean_intervals(np.array([[-1.0, 1.0]] * 10))
    assert result.low == pytest.approx([-1, lost - (1 - lost)])
    assert result.high == pytest.approx([-lost + (1 - lost), 1])
    # p is where the upper end of an interval of that confidence is 0: half of the population may then be won.
    assert result.p_negative == pytest.approx([0.5**10, 1])


def test_rare_large_differences_are_covered() -> None:
    """Each of 20 items differs by −2 with probability 0.16: 3% of draws show none, and don't miss the mean."""
    drawn = np.where(np.random.default_rng(0).random((20, 3000)) < 0.16, -2.0, 0.0)
    result = mean_intervals(drawn, bounds=(-2, 2))
    unchanged = ~drawn.any(axis=0)
    assert unchanged.any()
    assert (result.low[unchanged] <= -0.32).all()


def test_no_items_give_nan() -> None:
    assert np.isnan(mean_intervals(np.zeros((0, 2))).delta).all()


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=1, max_size=60))
def test_the_interval_holds_the_mean_and_mirrors(values: list[float]) -> None:
    differences = np.array(values)[:, None]
    found, mirrored = mean_intervals(differences), mean_intervals(-differences)
    assert -1 <= found.low[0] <= found.delta[0] + 1e-12
    assert found.delta[0] - 1e-12 <= found.high[0] <= 1
    assert (mirrored.low[0], mirrored.high[0]) == pytest.approx((-found.high[0], -found.low[0]))
    assert (found.high[0] < 0) == (found.p_negative[0] < 0.025)


def test_bootstrap_means_match_the_binomial_law() -> None:
    # 40 items of which 10 are lost: the mean of a draw is −Binomial(40, ¼) / 40.
    differences = np.zeros((40, 1))
    differences[:10] = -1
    means = bootstrap_means(differences, resamples=20000)
    assert means.mean() == pytest.approx(-0.25, abs=0.002)
    assert means.var() == pytest.approx(0.25 * 0.75 / 40, rel=0.05)


def test_centred_quantiles_are_moved_by_the_bias() -> None:
    draws = np.arange(101) / 100 + 3
    assert centred_quantiles(np.append(draws, np.nan), 1.0) == pytest.approx((1 - 0.475, 1 + 0.475))
    assert np.isnan(centred_quantiles(np.array([np.nan]), 1.0)).all()
    assert np.isnan(centred_quantiles(draws, np.nan)).all()
