"""Statistics against numbers worked out by hand."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lensprune.analysis.statistics import benjamini_hochberg, mcnemar_exact, paired_bootstrap
from lensprune.runs.chance import at_chance


def test_mcnemar_counts_only_discordant_items() -> None:
    clean = np.array([True] * 8 + [False] * 2)
    variant = clean.copy()
    variant[:6] = False  # six lost, none won: p = 2 / 2^6
    other = clean.copy()
    other[:3] = False
    other[8] = True  # three lost, one won: p = 2 (1 + 4) / 2^4
    p = mcnemar_exact(clean, np.stack([variant, other, clean], axis=1))
    assert p == pytest.approx([2 / 64, 2 * (1 + 4) / 16, 1.0])


def test_mcnemar_never_exceeds_one() -> None:
    clean = np.array([True, False])
    assert mcnemar_exact(clean, ~clean[:, None])[0] == 1.0


def test_benjamini_hochberg_by_hand() -> None:
    # sorted p × m / rank: .01·4/1, .02·4/2, .03·4/3, .5 → .04, .04, .04, .5 after the running minimum
    q = benjamini_hochberg(np.array([0.5, 0.01, 0.03, 0.02]))
    assert q == pytest.approx([0.5, 0.04, 0.04, 0.04])


def test_benjamini_hochberg_leaves_unknown_p_out() -> None:
    q = benjamini_hochberg(np.array([np.nan, 0.01, 0.04]))
    assert np.isnan(q[0])
    assert q[1:] == pytest.approx([0.02, 0.04])


def test_bootstrap_of_two_items_is_the_exact_law() -> None:
    # Two items, differences −1 and 0: means −1, −½, 0 with weights ¼, ½, ¼, so both 2.5% tails are the ends.
    result = paired_bootstrap(np.array([[-1.0], [0.0]]))
    assert (result.delta[0], result.low[0], result.high[0], result.n_units) == (-0.5, -1.0, 0.0, 2)


def test_bootstrap_matches_the_binomial_law() -> None:
    # 40 items of which 10 are lost: the mean of a draw is −Binomial(40, ¼)/40.
    differences = np.zeros((40, 1))
    differences[:10] = -1
    result = paired_bootstrap(differences, resamples=20000)
    weights = np.array([comb(40, k) * 0.25**k * 0.75 ** (40 - k) for k in range(41)]).cumsum()
    lower, upper = np.searchsorted(weights, 0.025), np.searchsorted(weights, 0.975)
    assert result.low[0] == pytest.approx(-upper / 40, abs=1 / 40)
    assert result.high[0] == pytest.approx(-lower / 40, abs=1 / 40)


def test_clusters_move_together_and_widen_the_interval() -> None:
    # Ten clusters of ten equal items: only ten independent units.
    differences = np.repeat([-1.0] * 3 + [0.0] * 7, 10)[:, None]
    clusters = np.repeat(np.arange(10), 10)
    clustered, plain = paired_bootstrap(differences, clusters), paired_bootstrap(differences)
    assert clustered.n_units == 10
    assert clustered.delta == plain.delta == pytest.approx(-0.3)
    assert clustered.high[0] - clustered.low[0] > 2 * (plain.high[0] - plain.low[0])


def test_unequal_clusters_use_the_ratio_of_sums() -> None:
    # Units (sum, size) = (−3, 3) and (0, 1): draws give −1, −3/4, 0; the 2.5% tails are −1 and 0.
    result = paired_bootstrap(np.array([[-1.0], [-1.0], [-1.0], [0.0]]), np.array([0, 0, 0, 1]))
    assert (result.delta[0], result.low[0], result.high[0]) == (-0.75, -1.0, 0.0)


def test_one_cluster_falls_back_on_items() -> None:
    differences = np.array([[-1.0], [0.0], [0.0], [-1.0]])
    one, none = paired_bootstrap(differences, np.zeros(4, int)), paired_bootstrap(differences)
    assert one.n_units == 4
    assert (one.low[0], one.high[0]) == (none.low[0], none.high[0])


def test_no_change_gives_the_exact_interval_of_no_event() -> None:
    result = paired_bootstrap(np.zeros((20, 1)))
    bound = 1 - 0.025 ** (1 / 20)
    assert (result.delta[0], result.low[0], result.high[0]) == (0.0, pytest.approx(-bound), pytest.approx(bound))


def test_the_interval_of_no_event_has_the_scale_of_what_differs() -> None:
    bound = 1 - 0.025 ** (1 / 20)
    gap = paired_bootstrap(np.zeros((20, 1)), largest=2)
    assert (gap.low[0], gap.high[0]) == pytest.approx((-2 * bound, 2 * bound))
    nats = paired_bootstrap(np.array([[0.0, -0.3, 0.0], [0.0, -0.3, -0.4]]), largest=None)
    assert nats.delta == pytest.approx([0, -0.3, -0.2])
    assert np.isnan(nats.low).tolist() == np.isnan(nats.high).tolist() == [True, True, False]


def test_all_lost_gives_the_exact_bound() -> None:
    """The Clopper–Pearson bound: at least a share 0.025^(1/n) is lost, and the others may be won."""
    lost = stats.binomtest(10, 10).proportion_ci(0.95, method="exact").low
    result = paired_bootstrap(np.array([[-1.0, 1.0]] * 10))
    assert result.low == pytest.approx([-1, lost - (1 - lost)])
    assert result.high == pytest.approx([-lost + (1 - lost), 1])
    # Half of each of five clusters: five units alike.
    half = paired_bootstrap(np.array([[-1.0], [0.0]] * 5), np.repeat(np.arange(5), 2))
    unseen = 1 - 0.025 ** (1 / 5)
    assert (half.low[0], half.high[0]) == pytest.approx((-0.5 - 0.5 * unseen, -0.5 + 1.5 * unseen))


def test_rare_large_differences_are_covered() -> None:
    """Each of 20 items differs by −2 with probability 0.16: 3% of draws show none, and no longer miss the mean."""
    drawn = np.where(np.random.default_rng(0).random((20, 3000)) < 0.16, -2.0, 0.0)
    result = paired_bootstrap(drawn, largest=2, resamples=300)
    unchanged = ~drawn.any(axis=0)
    assert unchanged.any()
    assert (result.low[unchanged] <= -0.32).all()


def test_no_items_gives_nan() -> None:
    assert np.isnan(paired_bootstrap(np.zeros((0, 2))).delta).all()


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=1, max_size=60), st.integers(0, 5))
def test_interval_is_ordered_and_repeatable(values: list[float], seed: int) -> None:
    differences = np.array(values)[:, None]
    first, again = (paired_bootstrap(differences, resamples=400, seed=seed) for _ in range(2))
    assert -1 <= first.low[0] <= first.high[0] <= 1
    assert (first.low, first.high) == (again.low, again.high)


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
