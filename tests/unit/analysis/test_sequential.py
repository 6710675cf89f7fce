"""Planned looks, e-values and stops by width, against published boundaries, enumeration and simulation."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import optimize, stats

from lensprune.analysis.intervals import score_z, tango
from lensprune.analysis.sequential import (
    Looks,
    crossing_probability,
    e_bh,
    e_intervals,
    e_values,
    loss_p,
    narrow_enough,
)
from lensprune.errors import UserError
from tests.calibration import sequential
from tests.calibration.row import Row


def within(row: Row, size: float) -> bool:
    """At most three standard errors of so many runs above a size."""
    return row.now <= size + 3 * np.sqrt(size * (1 - size) / row.runs)


@pytest.mark.parametrize(
    ("looks", "shape", "constant"),
    [(1, 0.25, 1.960), (2, 0.5, 2.178), (5, 0.5, 2.413), (2, 0.0, 1.977), (5, 0.0, 2.040)],
)
def test_published_boundaries(looks: int, shape: float, constant: float) -> None:
    """Jennison & Turnbull (2000), tables 2.1 and 2.3: Pocock's and O'Brien & Fleming's constants, two-sided 5%."""
    shares = [(k + 1) / looks for k in range(looks)]
    assert crossing_probability(shares, constant, shape) == pytest.approx(0.025, abs=0.0002)


def test_crossing_against_the_normal_law_of_three_looks() -> None:
    shares, height = np.array([0.2, 0.5, 1.0]), 2.3
    covariance = np.minimum.outer(shares, shares)
    bounds = height * shares**0.25
    below = stats.multivariate_normal(np.zeros(3), covariance, seed=0).cdf(bounds)
    assert crossing_probability(shares.tolist(), height) == pytest.approx(1 - below, abs=2e-5)


def test_far_tails_keep_their_digits() -> None:
    """Between that of the last look alone and the sum of all looks."""
    shares = [0.25, 0.5, 1.0]
    found = crossing_probability(shares, 6.0)
    assert stats.norm.sf(6.0) < found < sum(stats.norm.sf(6.0 * share**-0.25) for share in shares)


def test_one_look_is_a_single_test() -> None:
    p = np.array([[0.2, 0.01, 1e-6, 0.5]])
    assert Looks((50,)).repeated_p(p) == pytest.approx(p[0], rel=0.01)


def test_repeated_p_has_its_size_whenever_it_is_looked_at() -> None:
    generator, runs = np.random.default_rng(0), 20_000
    looks = Looks((50, 100, 150, 200))
    steps = generator.normal(size=(4, runs))
    z = np.cumsum(steps, axis=0) / np.sqrt(np.arange(1, 5))[:, None]
    p = stats.norm.sf(z)
    last = np.ones(runs)
    for seen in range(1, 5):
        now = looks.repeated_p(p[:seen])
        assert (now <= last + 1e-12).all(), "a height never falls"
        last = now
    for level in (0.2, 0.05, 0.01):
        assert (last <= level).mean() == pytest.approx(level, abs=4 * np.sqrt(level / runs))
    naive = (p.min(axis=0) <= 0.05).mean()
    assert naive > 0.1


def test_p_of_a_loss_by_hand() -> None:
    """Without a margin the sign test."""
    lost, won = np.array([6, 3, 0, 9]), np.array([1, 3, 0, 0])
    assert loss_p(lost, won, 40, 0.0) == pytest.approx(
        [stats.binom.sf(k - 1, n, 0.5) for k, n in ((6, 7), (3, 6), (0, 0), (9, 9))]
    )


@pytest.mark.parametrize(("lost", "won", "n"), [(5, 1, 12), (4, 3, 12), (7, 0, 10)])
def test_p_of_a_loss_by_enumeration(lost: int, won: int, n: int) -> None:
    """All sequences' laws at the share of losses that is most likely under the null hypothesis."""
    margin = 0.1

    def minus_log_likelihood(share: float) -> float:
        chances = np.array([share, share - margin, 1 - 2 * share + margin])
        return -float(np.array([lost, won, n - lost - won]) @ np.log(np.maximum(chances, 1e-300)))

    best = optimize.minimize_scalar(
        minus_log_likelihood, bounds=(margin, 0.55), method="bounded", options={"xatol": 1e-10}
    )
    share = float(best.x)
    total = 0.0
    for a, b in product(range(n + 1), repeat=2):
        if a + b <= n and a - b >= lost - won:
            weight = 0.5 if a - b == lost - won else 1.0
            law = [share, share - margin, 1 - 2 * share + margin]
            total += weight * float(stats.multinomial.pmf([a, b, n - a - b], n, law))
    assert loss_p(np.array([lost]), np.array([won]), n, margin)[0] == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("n", [60, 100, 200])
@pytest.mark.parametrize("won", [0.0, 0.01, 0.05, 0.1])
def test_size_at_the_margin_by_enumeration(n: int, won: float) -> None:
    chances = [0.05 + won, won, 0.95 - 2 * won]
    most = int(n * (0.05 + 2 * won) + 8 * np.sqrt(n * (0.05 + 2 * won)) + 8)
    lost, back = (own.ravel() for own in np.meshgrid(np.arange(min(n, most)), np.arange(min(n, most)), indexing="ij"))
    there = lost + back <= n
    lost, back = lost[there], back[there]
    weights = stats.multinomial.pmf(np.stack([lost, back, n - lost - back], axis=-1), n, chances)
    likely = weights > 1e-9
    p = loss_p(lost[likely], back[likely], n, 0.05)
    for level in (0.05, 0.01, 0.001):
        assert weights[likely][p <= level].sum() <= 1.3 * level
    normal = stats.norm.cdf(score_z(lost[likely], back[likely], n, -0.05))
    assert n == 60 or won not in (0.0, 0.01) or weights[likely][normal <= 0.01].sum() > 1.1 * 0.01


def test_intervals_at_any_look_are_what_no_e_value_refutes() -> None:
    lost, won, n = np.array([0, 30, 5, 12]), np.array([0, 0, 5, 60]), np.array([40, 100, 300, 200])
    low, high = e_intervals(lost, won, n)
    for ends, a, b in ((low, won, lost), (-high, lost, won)):
        assert (e_values(a, b, n, np.maximum(ends - 1e-4, -0.9999)) >= 40 - 0.5).all()
        assert (e_values(a, b, n, ends + 1e-4) < 40).all()
    assert (low < (won - lost) / n).all()
    assert ((won - lost) / n < high).all()


def test_intervals_at_any_look_cover_at_all_looks_together() -> None:
    generator, runs = np.random.default_rng(0), 300
    drawn = generator.random((200, runs))
    changes = np.where(drawn < 0.2, -1, np.where(drawn < 0.25, 1, 0))
    outside = np.zeros(runs, bool)
    for n in range(20, 201, 20):
        low, high = e_intervals((changes[:n] < 0).sum(axis=0), (changes[:n] > 0).sum(axis=0), n)
        outside |= (low > -0.15) | (high < -0.15)
    assert outside.mean() <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / runs)
    assert (high - low).mean() < 0.4


def test_what_needs_no_more_items() -> None:
    looks = Looks((100, 200, 400), margin=0.05)
    lost, won = np.array([40, 0, 2, 10]), np.zeros(4, int)
    named, further = looks.verdicts(loss_p(lost, won, 100, 0.05)[None])
    assert named.tolist() == [True, False, False, False]
    assert further.tolist() == [False, False, False, True]
    # At the cap nothing goes on.
    p = np.stack([loss_p(lost * k, won, 100 * k, 0.05) for k in (1, 2, 4)])
    named, further = looks.verdicts(p)
    assert not further.any()
    assert named.tolist() == [True, False, False, True]


def test_what_is_given_up_keeps_its_p() -> None:
    looks = Looks((100, 200))
    p = np.array([[0.3, 0.01], [np.nan, 0.001]])
    assert looks.heights(p)[0] == pytest.approx(stats.norm.isf(0.3) * 0.5**0.25)
    assert looks.repeated_p(p)[1] < 0.01


def test_repeated_intervals_are_wider_and_cover_at_all_looks_together() -> None:
    looks = Looks((50, 100, 200))
    lost, won = np.array([6]), np.array([1])
    for look, n in enumerate(looks.items):
        repeated = looks.intervals(lost, won, look)
        single = tango(lost, won, n)
        assert repeated[0][0] < single[0][0]
        assert single[1][0] < repeated[1][0]
    generator, runs = np.random.default_rng(0), 3000
    drawn = generator.random((200, runs))
    changes = np.where(drawn < 0.15, -1, np.where(drawn < 0.2, 1, 0))
    covered, once = np.ones(runs, bool), np.ones(runs, bool)
    for look, n in enumerate(looks.items):
        counts = [(changes[:n] == sign).sum(axis=0) for sign in (-1, 1)]
        (low, high), (one_low, one_high) = looks.intervals(*counts, look), tango(*counts, n)
        covered &= (low <= -0.1) & (high >= -0.1)
        once &= (one_low <= -0.1) & (one_high >= -0.1)
    assert once.mean() < 0.92
    assert covered.mean() >= 0.95 - 3 * np.sqrt(0.05 * 0.95 / runs)


def test_e_values_by_hand_and_on_average() -> None:
    """After one item: the mean over stakes; on average 1 where the loss is the margin, whatever is won besides."""
    stakes = np.geomspace(0.02, 0.98, 16) / 1.1
    [lost] = e_values(np.array([1]), np.array([0]), 1, 0.1)
    assert lost == pytest.approx((1 + stakes * 0.9).mean())
    n, share = 6, 0.3
    chances = [share, share - 0.1, 1 - 2 * share + 0.1]
    total = 0.0
    for a, b in product(range(n + 1), repeat=2):
        if a + b <= n:
            weight = stats.multinomial.pmf([a, b, n - a - b], n, chances)
            total += float(weight * e_values(np.array([a]), np.array([b]), n, 0.1)[0])
    assert total == pytest.approx(1.0)


def test_e_bh_by_hand() -> None:
    """Five values: 100 ≥ 5/(0.05·1), 60 ≥ 5/(0.05·2), and 30 < 5/(0.05·3)."""
    q = e_bh(np.array([30.0, 100.0, 1.0, 60.0, 0.0]))
    assert q[[1, 3]] == pytest.approx([0.05 * 5 / 6, 0.05 * 5 / 6])
    assert q[0] == pytest.approx(5 / 90)
    assert (q[[2, 4]] == 1).all()


def test_narrow() -> None:
    assert narrow_enough(np.array([-0.1, -0.2]), np.array([0.0, 0.0]), 0.1).tolist() == [True, False]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"items": ()}, r"looks \(none\): expected 1 to 10"),
        ({"items": (100, 100)}, "looks 100,100: expected increasing numbers of items"),
        ({"items": (0, 5)}, "increasing"),
        ({"items": (10,), "margin": 1.0}, "margin 1 is not a loss"),
        ({"items": (10,), "level": 0.0}, "q 0 is not a false discovery rate"),
    ],
)
def test_what_is_no_plan(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Looks(**values)  # type: ignore[arg-type]


def test_fewer_cells_for_the_same_power() -> None:
    rows = sequential.planned_looks(0.25)
    powers, shares = rows[::2], rows[1::2]
    assert all(row.now > row.before - 0.05 for row in powers)
    assert all(row.before > 0.4 for row in powers)
    assert shares[0].now < 0.5
    assert shares[1].now < 0.85
    assert shares[2].now < 0.45


@pytest.mark.slow
def test_the_rate_at_the_boundary_holds_where_peeking_breaks_it() -> None:
    for row in sequential.at_the_boundary(0.3):
        assert row.before > 0.06
        assert within(row, 0.05)


def test_widths_cost_no_coverage() -> None:
    for row in sequential.until_width(0.2):
        if row.number == "share of the cells":
            assert row.now < 0.75
        else:
            assert row.now >= 0.93 - 3 * np.sqrt(0.93 * 0.07 / row.runs)


@pytest.mark.slow
def test_any_look() -> None:
    rate, items = sequential.any_look(0.2)
    assert rate.before > 0.07
    assert within(rate, 0.05)
    assert items.now < 2 * items.before
    for coverage, width in zip(*[iter(sequential.any_look_interval(0.05))] * 2, strict=True):
        assert coverage.before < 0.9
        assert coverage.now >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / coverage.runs)
        assert width.now < 2 * width.before
