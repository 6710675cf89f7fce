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
    Plan((20, 60, 120, 200), MARGIN),
    Plan((20, 40, 80, 140, 200), MARGIN),
    Plan((50, 100, 200), MARGIN),
    Plan((100, 200), MARGIN),
    Plan(_even(10), MARGIN),
    Plan(_even(5), MARGIN, shape=0.0),
    Plan(_even(5), MARGIN, shape=0.5),
    Plan(_even(5), MARGIN, futility=0.2),
    Plan(_even(5), MARGIN, futility=0.4),
)


def replays(sweep: Recorded, runs: int) -> tuple[int, Float[np.ndarray, "plan 3"]]:
    """Number of parts that are detected by a single look at all items; and for each of `PLANS` the share of the cells,
    how many of these parts are detected, and how many others."""
    generator, single = np.random.default_rng(0), Looks((len(sweep.right),), MARGIN)
    whole = single.q(look_p(list(sweep.changes.T), sweep.clusters, single, 1)) <= single.level
    found = np.zeros((len(PLANS), 3))
    every = sorted({n for plan in PLANS for n in plan.items})
    for _ in range(runs):
        order = generator.permutation(len(sweep.right))
        changes, clusters = sweep.changes[order], sweep.clusters[order]
        p_at = {n: look_p(list(changes[:n].T), clusters[:n], Looks((n,), MARGIN), 1)[0] for n in every}
        for place, plan in enumerate(PLANS):
            share, named = plan.replayed(np.array([p_at[n] for n in plan.items]))
            found[place] += share, (named & whole).sum(), (named & ~whole).sum()
    return int(whole.sum()), found / runs


HEADING = [
    "looks",
    "shape",
    "given up below",
    "layers: cells",
    "detected",
    "others",
    "every third head: cells",
    "detected",
    "others",
    "layers, generate: cells",
    "detected",
    "others",
]
"""Three columns for each of `SWEEPS`."""


def table(sweeps: dict[str, Recorded], runs: int) -> str:
    """What each plan measures and detects, over the sweeps."""
    found = {name: replays(sweep, runs) for name, sweep in sweeps.items()}
    lines = [f"| {' | '.join(HEADING)} |", "|" + "---|" * len(HEADING)]
    everything = " | ".join(f"1 | {n} | 0" for n, _ in found.values())
    lines.append(f"| all items at once | – | – | {everything} |")
    for place, plan in enumerate(PLANS):
        row = [",".join(map(str, plan.items)), f"{plan.shape:g}", f"{plan.futility:g}"]
        row += [f"{own:.2f}" for _, rows in found.values() for own in rows[place]]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, metavar="RUNS", help="folder of the sweeps")
    parser.add_argument("--times", type=int, default=100, help="how many orders of the items")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the table between the page's marks")
    arguments = parser.parse_args()
    sweeps = {name: recorded(*own, arguments.folder / name.replace(" ", "_")) for name, own in SWEEPS.items()}
    text = table(sweeps, arguments.times)
    print(text)
    if arguments.write is not None:
        write_between(arguments.write, "choice of looks", text)


if __name__ == "__main__":
    main()
