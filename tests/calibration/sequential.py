"""Studies of stopping early: cells for the same power, false discoveries at the boundary, coverage at a stop."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lensprune.analysis.intervals import mean_intervals, tango
from lensprune.analysis.multiplicity import benjamini_hochberg
from lensprune.analysis.sequential import Looks, e_bh, e_intervals, e_values, loss_p, narrow_enough
from tests.calibration.row import Row

__all__ = ["any_look", "any_look_interval", "at_the_boundary", "decided", "planned_looks", "until_width"]

MARGIN = 0.05


@dataclass(frozen=True)
class World:
    """What each part loses on average, and the share of items that flip either way besides."""

    name: str
    losses: np.ndarray
    flips: float

    def changes(self, generator: np.random.Generator, n: int) -> np.ndarray:
        """Lost (−1), won (1) and other (0) items of every part; E[lost − won] is its loss."""
        drawn = generator.random((n, len(self.losses)))
        lost, won = self.losses + self.flips / 2, self.flips / 2
        return np.where(drawn < lost, -1.0, np.where(drawn < lost + won, 1.0, 0.0))


WORLDS = (
    World(
        "likelihood-like: 30 parts, 10 lose 0.2 to 0.5, 4% flip", np.r_[np.linspace(0.2, 0.5, 10), np.zeros(20)], 0.04
    ),
    World("generate-like: 30 parts lose 0 to 0.3, 20% flip", np.linspace(0.0, 0.3, 30), 0.2),
    World("heads: 10 of 270 lose 0.15 to 0.3, 1% flip", np.r_[np.linspace(0.15, 0.3, 10), np.zeros(260)], 0.01),
)


def decided(changes: np.ndarray, looks: Looks) -> tuple[np.ndarray, np.ndarray]:
    """Which parts are named by planned looks, and how many items each was asked."""
    parts = changes.shape[1]
    rows: list[np.ndarray] = []
    go_on, asked = np.ones(parts, bool), np.zeros(parts, int)
    named = np.zeros(parts, bool)
    for n in looks.items:
        counts = [(changes[:n] == sign).sum(axis=0) for sign in (-1, 1)]
        asked[go_on] = n
        rows.append(np.where(go_on, loss_p(*counts, n, looks.margin), np.nan))
        named, further = looks.verdicts(np.stack(rows))
        go_on &= further
        if not go_on.any():
            break
    return named, asked


def _peeked(changes: np.ndarray, looks: Looks) -> np.ndarray:
    """Parts that are named at some look as though it were the only one."""
    named = np.zeros(changes.shape[1], bool)
    for n in looks.items:
        counts = [(changes[:n] == sign).sum(axis=0) for sign in (-1, 1)]
        named |= benjamini_hochberg(loss_p(*counts, n, looks.margin)) <= looks.level
    return named


def planned_looks(scale: float = 1.0) -> list[Row]:
    """A fixed number of items, against looks whose cap is a fifth larger, for the same power."""
    rows, fixed = [], 200
    looks = Looks((40, 90, 140, 190, 240), MARGIN)
    for place, world in enumerate(WORLDS):
        runs = max(8, round((60 if len(world.losses) < 100 else 24) * scale))
        generator, matter = np.random.default_rng(place), world.losses > MARGIN + 1e-9
        powers, cells = np.zeros(2), 0.0
        for _ in range(runs):
            changes = world.changes(generator, looks.items[-1])
            counts = [(changes[:fixed] == sign).sum(axis=0) for sign in (-1, 1)]
            whole = benjamini_hochberg(loss_p(*counts, fixed, MARGIN)) <= looks.level
            named, asked = decided(changes, looks)
            powers += whole[matter].mean(), named[matter].mean()
            cells += asked.mean() / fixed
        text = f"{world.name}; all of 200 items, or looks at 40, 90, 140, 190, 240; margin 0.05"
        rows.append(Row("planned looks", text, "power", *(powers / runs), "the same", runs))
        rows.append(Row("planned looks", text, "share of the cells", 1.0, cells / runs, "small", runs))
    return rows


def at_the_boundary(scale: float = 1.0) -> list[Row]:
    """Parts that lose exactly the margin, beside some that lose more; looking five times as though once is `before`."""
    rows = []
    looks = Looks((40, 80, 120, 160, 200), MARGIN)
    for flips in (0.0, 0.1):
        world = World("", np.r_[np.full(5, 0.2), np.full(25, MARGIN)], flips)
        runs, generator, found = max(20, round(300 * scale)), np.random.default_rng(1), np.zeros(2)
        for _ in range(runs):
            changes = world.changes(generator, looks.items[-1])
            for place, named in enumerate((_peeked(changes, looks), decided(changes, looks)[0])):
                found[place] += named[5:].sum() / max(1, named.sum())
        text = f"25 parts lose the margin of 0.05, 5 lose 0.2, {flips:.0%} flip; five looks up to 200 items"
        rows.append(Row("planned looks", text, "false discovery rate", *(found / runs), "≤ 0.05", runs))
    return rows


def until_width(scale: float = 1.0) -> list[Row]:
    """Each part until its own interval is no wider than 0.1, against as many items as the widest needs for all."""
    rows, step, cap = [], 25, 600
    for name, losses, flips in (
        ("30 layers lose 0 to 0.3, 4% flip", np.linspace(0, 0.3, 30), 0.04),
        ("270 heads, 20 lose up to 0.2, 1% flip", np.r_[np.linspace(0.01, 0.2, 20), np.zeros(250)], 0.01),
    ):
        world = World(name, losses, flips)
        runs = max(4, round((40 if len(losses) < 100 else 12) * scale))
        generator, inside, asked_share = np.random.default_rng(len(losses)), 0.0, 0.0
        for _ in range(runs):
            changes = world.changes(generator, cap)
            open_parts, asked = np.ones(len(losses), bool), np.full(len(losses), cap)
            low, high = np.zeros((2, len(losses)))
            for n in range(step, cap + 1, step):
                chosen = np.flatnonzero(open_parts)
                own = mean_intervals(changes[:n, chosen])
                low[chosen], high[chosen] = own.low, own.high
                done = chosen[narrow_enough(own.low, own.high, 0.1)]
                open_parts[done], asked[done] = False, n
                if not open_parts.any():
                    break
            inside += ((low <= -losses) & (-losses <= high)).mean()
            asked_share += asked.mean() / asked.max()
        text = f"{name}; width 0.1, looked at every 25 items"
        rows.append(Row("until precise", text, "share of the cells", 1.0, asked_share / runs, "small", runs))
        rows.append(
            Row("until precise", text, "coverage at the stop", np.nan, inside / runs, "≥ 0.93", runs * len(losses))
        )
    return rows


def any_look(scale: float = 1.0) -> list[Row]:
    """E-values that are looked at after every 20 items, without a plan."""
    cap, step = 400, 20
    world = World("", np.r_[np.full(5, 0.2), np.full(25, MARGIN)], 0.02)
    looks = Looks((60, 120, 180, 240), MARGIN)
    runs, generator = max(10, round(100 * scale)), np.random.default_rng(2)
    false, items = np.zeros(2), np.zeros(2)
    for _ in range(runs):
        changes = world.changes(generator, cap)
        naive, named, when = np.zeros(30, bool), np.zeros(30, bool), np.full(30, cap)
        for n in range(step, cap + 1, step):
            lost, won = ((changes[:n] == sign).sum(axis=0) for sign in (-1, 1))
            naive |= benjamini_hochberg(loss_p(lost, won, n, MARGIN)) <= 0.05
            new = (e_bh(e_values(lost, won, n, MARGIN)) <= 0.05) & ~named
            named |= new
            when[new] = n
        asked = decided(changes, looks)[1]
        false += naive[5:].sum() / max(1, naive.sum()), named[5:].sum() / max(1, named.sum())
        items += asked[:5].mean(), when[:5].mean()
    text = "25 parts lose the margin of 0.05, 5 lose 0.2; looked at every 20 items up to 400"
    return [
        Row("any look", text, "false discovery rate", *(false / runs), "≤ 0.05", runs),
        Row(
            "any look",
            f"{text}; before: planned looks",
            "items of a part that loses",
            *(items / runs),
            "small",
            runs,
        ),
    ]


def any_look_interval(scale: float = 1.0) -> list[Row]:
    """Intervals after every 40 items, together: those for one number of items (Tango's) are `before`."""
    rows, cap, runs = [], 400, max(50, round(2000 * scale))
    for lost, won in ((0.03, 0.01), (0.2, 0.05)):
        generator, truth = np.random.default_rng(round(1000 * lost)), won - lost
        drawn = generator.random((cap, runs))
        changes = np.where(drawn < lost, -1, np.where(drawn < lost + won, 1, 0))
        covered, width = np.ones((2, runs), bool), np.zeros(2)
        for n in range(40, cap + 1, 40):
            counts = [(changes[:n] == sign).sum(axis=0) for sign in (-1, 1)]
            for place, (low, high) in enumerate((tango(*counts, n), e_intervals(*counts, n))):
                covered[place] &= (low <= truth) & (truth <= high)
                width[place] = (high - low).mean()
        text = f"a part loses {lost:.0%} and wins {won:.0%} of the items; looked at every 40 items up to 400"
        rows.append(Row("any look", text, "coverage at all looks", *covered.mean(axis=1), "≥ 0.95", runs))
        rows.append(Row("any look", text, "width after 400 items", *width, "small", runs))
    return rows
