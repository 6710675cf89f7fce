"""Exact tests of paired outcomes and adjustments for many of them, against numbers worked out by hand."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from lensprune.analysis.multiplicity import benjamini_hochberg, discrete_bh, holm
from lensprune.analysis.paired_tests import ExactTests, lower_tail, mcnemar_exact


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


def test_holm_by_hand() -> None:
    # sorted p × what is left: .01·3, .02·2, .03·1 → .03, .04, .04 after the running maximum
    assert holm([0.03, np.nan, 0.01, 0.02]) == pytest.approx([0.04, np.nan, 0.03, 0.04], nan_ok=True)
    assert np.isnan(holm([np.nan])).all()


@pytest.mark.parametrize("n", [1, 2, 7, 40])
def test_holm_is_statsmodels(n: int) -> None:
    p = np.random.default_rng(n).integers(1, 20, n) / (20 * n)
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])


def test_holm_collects_no_garbage(monkeypatch: pytest.MonkeyPatch) -> None:
    collected: list[int] = []
    monkeypatch.setattr(gc, "collect", lambda generation=2: collected.append(generation))
    multipletests([0.01, 0.02], method="holm")
    assert collected
    collected.clear()
    holm([0.01, 0.02])
    assert not collected


@pytest.mark.parametrize(("lost", "won"), [(5, 0), (6, 2), (2, 6), (0, 0)])
def test_losses_have_the_binomial_law(lost: int, won: int) -> None:
    column = np.repeat([-1.0, 0.0, 1.0], [lost, 7, won])[:, None]
    tests = lower_tail(column)
    assert tests.p == pytest.approx([stats.binom.sf(lost - 1, lost + won, 0.5)])
    attainable = stats.binom.sf(np.arange(lost + won, -1, -1) - 1, lost + won, 0.5)
    assert tests.attainable[tests.law[0]] == pytest.approx(attainable)
    assert lower_tail(-column).p == pytest.approx([stats.binom.sf(won - 1, lost + won, 0.5)])


def test_gaps_against_all_signs() -> None:
    column = np.array([-2.0, -1.0, 1.0, -2.0, 0.0, 1.0])
    sizes = np.abs(column[column != 0])
    sums = np.array([np.dot(1 - 2 * ((pattern >> np.arange(5)) & 1), sizes) for pattern in range(32)])
    tests = lower_tail(column[:, None])
    assert tests.p == pytest.approx([(sums <= column.sum()).mean()])
    assert tests.attainable[0] == pytest.approx([(sums <= value).mean() for value in np.unique(sums)])


def test_the_null_law_of_p_is_its_attainable_values() -> None:
    """P(p ≤ t) = t at every attainable t, by enumeration of all signs of four losses."""
    outcomes = np.array([[1 - 2 * ((pattern >> bit) & 1) for pattern in range(16)] for bit in range(4)], float)
    tests = lower_tail(outcomes)
    assert len(tests.attainable) == 1
    for value in tests.attainable[0]:
        assert np.mean(tests.p <= value) == pytest.approx(value)


def test_discrete_bh_by_hand() -> None:
    """Four tests: p .01 of a fine law, .04 of a coarse one, and two that can't be small."""
    fine, coarse, dull = np.array([0.01, 0.02, 0.5, 1.0]), np.array([0.04, 1.0]), np.array([1.0])
    tests = ExactTests(np.array([0.04, 1.0, 0.01, 1.0]), np.array([1, 2, 0, 2]), (fine, coarse, dull))
    # τ: mean of F / (1 − F) at .04 is (.02/.98 + .04/.96) / 4 = 0.0155, at 0.5 (1 + .04/.96) / 4 = 0.26; so τ = 0.04.
    # At .01: F = (.01, 0) and sums .01/.98 for one rejection. At .04: (.02/.98 + .04/.96) / 2 for two.
    at_one, at_two = 0.01 / 0.98, (0.02 / 0.98 + 0.04 / 0.96) / 2
    assert discrete_bh(tests) == pytest.approx([at_two, 1, at_one, 1])
    # Two more that were never measured have F(t) = t; τ is still .04, with (.02/.98 + 3 · .04/.96) / 6 = 0.024.
    at_one, at_two = 0.01 / 0.98 + 2 * 0.01 / 0.96, (0.02 / 0.98 + 3 * 0.04 / 0.96) / 2
    assert discrete_bh(tests, hypotheses=6) == pytest.approx([at_two, 1, at_one, 1])
    assert (discrete_bh(tests, hypotheses=3) == discrete_bh(tests)).all()
    # Benjamini & Hochberg count the two that can't be small.
    assert benjamini_hochberg(tests.p) == pytest.approx([0.08, 1, 0.04, 1])


def rejected_by_definition(tests: ExactTests, level: float) -> np.ndarray:
    """[DBH-SU] word for word: critical values over all attainable values, then the step up."""

    def reached(t: float) -> np.ndarray:
        return np.array(
            [max((a for a in tests.attainable[law] if a <= t * (1 + 1e-9)), default=0.0) for law in tests.law]
        )

    m = len(tests.p)
    values = sorted({float(value) for law in tests.law for value in tests.attainable[law]})
    with np.errstate(divide="ignore"):
        tau = max((t for t in values if (reached(t) / (1 - reached(t))).sum() <= level * m), default=0.0)
    room = 1 - reached(tau)
    critical = [
        max((t for t in values if t <= tau and (reached(t) / room).sum() <= level * k), default=-1.0)
        for k in range(1, m)
    ] + [tau]
    order = np.sort(tests.p)
    found = max((k for k in range(1, m + 1) if order[k - 1] <= critical[k - 1]), default=0)
    return tests.p <= (order[found - 1] if found else -1.0)


@pytest.mark.parametrize("level", [0.05, 0.2])
def test_discrete_bh_is_the_published_step_up(level: float) -> None:
    generator = np.random.default_rng(0)
    counts = []
    for _ in range(60):
        lost = generator.random((30, 12)) < np.where(np.arange(12) < 4, 0.25, 0.02)
        won = generator.random((30, 12)) < 0.03
        tests = lower_tail(won.astype(float) - lost)
        expected = rejected_by_definition(tests, level)
        assert (discrete_bh(tests, level) <= level).tolist() == expected.tolist()
        # Eight parts that were never measured.
        law = len(tests.attainable)
        never = np.unique(np.concatenate(tests.attainable)), np.ones(8), np.full(8, law)
        more = ExactTests(np.append(tests.p, never[1]), np.append(tests.law, never[2]), (*tests.attainable, never[0]))
        fewer = rejected_by_definition(more, level)[:12]
        assert (discrete_bh(tests, level, hypotheses=20) <= level).tolist() == fewer.tolist()
        counts.append(expected.sum())
    assert len(set(counts)) > 3


def tarone_gilbert(tests: ExactTests, level: float = 0.05) -> np.ndarray:
    """Gilbert (2005): BH over the tests that could pass Bonferroni for so many (Tarone 1990)."""
    smallest = np.array([tests.attainable[law][0] for law in tests.law])
    size = next(k for k in range(1, len(smallest) + 1) if (smallest <= level / k).sum() <= k)
    able = smallest <= level / size
    rejected = np.zeros(len(smallest), bool)
    if able.any():
        rejected[able] = benjamini_hochberg(tests.p[able]) <= level
    return rejected


def test_discrete_bh_beside_tarone_and_gilbert() -> None:
    """Two ways to use that p is discrete: both find far more than BH on two-sided p, and about as much."""
    generator = np.random.default_rng(1)
    found = np.zeros(3)
    for _ in range(100):
        clean = generator.random(50) < 0.7
        lost = clean[:, None] & (generator.random((50, 30)) < np.where(np.arange(30) < 2, 0.33, 0.04))
        won = ~clean[:, None] & (generator.random((50, 30)) < 0.09)
        variants = (clean[:, None] & ~lost) | won
        tests = lower_tail(won.astype(float) - lost)
        two_sided = (benjamini_hochberg(mcnemar_exact(clean, variants)) <= 0.05) & (lost.sum(0) > won.sum(0))
        chosen = two_sided, tarone_gilbert(tests), discrete_bh(tests) <= 0.05
        found += [own[:2].sum() for own in chosen]
    assert found[0] > 20
    assert min(found[1:]) > 1.5 * found[0]
    assert found[2] == pytest.approx(found[1], rel=0.1)


def test_nothing_to_test_gives_nothing() -> None:
    assert discrete_bh(lower_tail(np.zeros((5, 3)))).tolist() == [1, 1, 1]
    assert discrete_bh(lower_tail(np.zeros((5, 0)))).size == 0


def test_many_items_do_not_underflow() -> None:
    tests = lower_tail(np.concatenate([-np.ones((3000, 1)), np.ones((3000, 1))], axis=1))
    assert 0 < tests.p[0] < 1e-300
    assert tests.p[1] == 1
    assert (discrete_bh(tests) <= 0.05).tolist() == [True, False]
