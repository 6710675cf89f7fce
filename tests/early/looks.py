"""How the choice of looks changes what planned looks save: ``python -m tests.early.looks RUNS --write PAGE``.

RUNS is the folder of `tests.early.strata`. The items of each recorded sweep are put into random orders; the looks are
replayed on each, with the task's clusters, and compared with a single look at all items.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from unittest import mock

import numpy as np
from jaxtyping import Bool, Float

from lensprune.analysis import sequential
from lensprune.analysis.sequential import FUTILITY, SHAPE, Looks, crossing_probability
from lensprune.analysis.stopping import look_p
from tests.early.strata import SWEEPS, Recorded, recorded
from tests.helpers.markdown import write_between

MARGIN = 0.05
_HEIGHTS = np.arange(-2.0, 9.0, 0.1)


@lru_cache
def _log_crossing(shares: tuple[float, ...], shape: float) -> Float[np.ndarray, " height"]:
    return np.log([crossing_probability(shares, height, shape) for height in _HEIGHTS])


@dataclass(frozen=True)
class Plan(Looks):
    """Looks with another shape of the boundary, and parts given up at another predicted probability."""

    shape: float = SHAPE
    futility: float = FUTILITY

    def heights(self, p: Float[np.ndarray, "look part"]) -> Float[np.ndarray, " part"]:
        with mock.patch.object(sequential, "SHAPE", self.shape):
            return super().heights(p)

    def repeated_p(self, p: Float[np.ndarray, "look part"]) -> Float[np.ndarray, " part"]:
        heights = np.clip(self.heights(p), _HEIGHTS[0], _HEIGHTS[-1])
        return np.exp(np.interp(heights, _HEIGHTS, _log_crossing(self.shares, self.shape)))

    def height_at(self, level: float) -> float:
        return float(np.interp(-np.log(level), -_log_crossing(self.shares, self.shape), _HEIGHTS))

    def replayed(self, p: Float[np.ndarray, "look part"]) -> tuple[float, Bool[np.ndarray, " part"]]:
        """Share of the cells that are measured and the parts detected, from the p-values of all looks."""
        known, cells, before = np.full(p.shape, np.nan), 0, 0
        going, named = np.ones(p.shape[1], bool), np.zeros(p.shape[1], bool)
        with mock.patch.object(sequential, "FUTILITY", self.futility):
            for look, n in enumerate(self.items):
                cells += int(going.sum()) * (n - before)
                known[look, going], before = p[look, going], n
                named, continues = self.verdicts(known[: look + 1])
                going = going & continues
        return cells / (self.items[-1] * p.shape[1]), named


def _even(n_looks: int) -> tuple[int, ...]:
    return tuple(200 * look // n_looks for look in range(1, n_looks + 1))


PLANS = (
    Plan(_even(5), MARGIN),
    Plan((30, 60, 120, 200), MARGIN),
    Plan((20, 40, 80, 140, 200), MARGIN),
    Plan((50, 100, 200), MARGIN),
    Plan((100, 200), MARGIN),
    Plan(_even(10), MARGIN),
    Plan(_even(5), MARGIN, shape=0.0),
    Plan(_even(5), MARGIN, shape=0.5),
    Plan(_even(5), MARGIN, futility=0.2),
    Plan(_even(5), MARGIN, futility=0.4),
)


def replays(sweep: Recorded, runs: int) -> Float[np.ndarray, "plan 4"]:
    """For each of `PLANS`: share of the cells, parts detected, parts detected only with looks, only on all items."""
    generator, single = np.random.default_rng(0), Looks((len(sweep.right),), MARGIN)
    whole = single.q(look_p(list(sweep.changes.T), sweep.clusters, single, 1)) <= single.level
    found = np.zeros((len(PLANS), 4))
    every = sorted({n for plan in PLANS for n in plan.items})
    for _ in range(runs):
        order = generator.permutation(len(sweep.right))
        changes, clusters = list(sweep.changes[order].T), sweep.clusters[order]
        p_at = {n: look_p(changes, clusters, Looks((n,), MARGIN), 1)[0] for n in every}
        for place, plan in enumerate(PLANS):
            share, named = plan.replayed(np.array([p_at[n] for n in plan.items]))
            found[place] += share, named.sum(), (named & ~whole).sum(), (whole & ~named).sum()
    return found / runs


def table(sweeps: dict[str, Recorded], runs: int) -> str:
    """What each plan takes and detects, over the sweeps."""
    lines = [
        "| looks | shape | given up below | sweep | cells | detected | not on all items | only on all items |",
        "|" + "---|" * 8,
    ]
    for name, sweep in sweeps.items():
        for plan, (share, named, more, fewer) in zip(PLANS, replays(sweep, runs), strict=True):
            row = [",".join(map(str, plan.items)), f"{plan.shape:g}", f"{plan.futility:g}", name]
            lines.append(f"| {' | '.join([*row, f'{share:.2f}', f'{named:.1f}', f'{more:.2f}', f'{fewer:.2f}'])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, metavar="RUNS", help="folder of the sweeps")
    parser.add_argument("--times", type=int, default=100, help="how many orders of the items")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the table between the page's marks")
    arguments = parser.parse_args()
    sweeps = {
        name: recorded(*SWEEPS[name], arguments.folder / name.replace(" ", "_"))
        for name in ("layers", "layers, generate")
    }
    text = table(sweeps, arguments.times)
    print(text)
    if arguments.write is not None:
        write_between(arguments.write, "choice of looks", text)


if __name__ == "__main__":
    main()
