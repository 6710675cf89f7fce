"""Whether looks at the items near the boundary first would save cells: ``python -m tests.early.order RUNS``.

RUNS is the folder of `tests.early.strata`. Items are resampled from its sweeps. With a stratified order, each look
before the last measures strata of the clean margin in the shares of `allocate`, so that most of its items are near the
boundary, and tests by `stratified_p`; the last look measures all items, as in random order, and needs no weights.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from lensprune.analysis.sequential import Looks, loss_p
from tests.early.strata import SWEEPS, Recorded, Strata, allocate, by_rightness, recorded, stratified_p

MARGIN = 0.05
CAPS = (160, 200)
"""Items of the last of five evenly spaced looks. Power differs between orders, so cells are compared at equal power."""
ORDERS = ("random", "random, stratified test", "boundary first", "boundary first, information")
"""Items in random order with the test of planned looks, and with the stratified test; more items of the strata that
change more, with the stratified test; and the same with looks that count by the variance of their estimates instead of
their items."""


@dataclass(frozen=True)
class Informed(Looks):
    """Looks that count by the share of the last look's information that they have."""

    information: tuple[float, ...] = ()

    @property
    def shares(self) -> tuple[float, ...]:
        return self.information


def one_sweep(
    sweep: Recorded,
    strata: Strata,
    looks: Looks,
    order: str,
    generator: np.random.Generator,
    judged: Bool[np.ndarray, " v"],
) -> tuple[int, Bool[np.ndarray, " judged"]]:
    """Cells of one resampled sweep over the `judged` variants, and which of them are detected; strata are allocated by
    what the others change."""
    n_all, n_strata = looks.items[-1], int(strata.max()) + 1
    items = generator.integers(0, len(strata), n_all)
    own, sizes = sweep.changes[items][:, judged], np.bincount(strata[items], minlength=n_strata)
    others = [sweep.changes[strata == h][:, ~judged] for h in range(n_strata)]
    spread = np.sqrt([there.var(axis=0).mean() for there in others])
    if order.startswith("boundary"):
        asked = [sizes if n == n_all else allocate(sizes, spread, n) for n in looks.items]
    else:
        asked = [np.bincount(strata[items[:n]], minlength=n_strata) for n in looks.items]
    weight = sizes / n_all
    if order.endswith("information"):
        means = np.array([there.mean(axis=0) for there in others])
        between = (weight[:, None] * (means - weight @ means) ** 2).sum(axis=0).mean() / n_all
        variance = [between + (weight**2 * spread**2 / np.maximum(m, 1)).sum() for m in asked]
        information = np.round(variance[-1] / np.array(variance), 2)
        if (np.diff(information) > 0).all():
            looks = Informed(looks.items, looks.margin, looks.level, tuple(information))
    sign = np.array([1 if sweep.right[strata == h].all() else -1 for h in range(n_strata)])
    lines = [np.flatnonzero(strata[items] == h) for h in range(n_strata)]
    p = np.full((len(looks.items), own.shape[1]), np.nan)
    going, named, cells, before = np.ones(own.shape[1], bool), np.zeros(own.shape[1], bool), 0, 0
    for look, m in enumerate(asked):
        n, there = looks.items[look], m > 0
        if order == "random" or n == n_all or not there.all():
            measured = own[:n, going]
            p[look, going] = loss_p((measured < 0).sum(axis=0), (measured > 0).sum(axis=0), n, looks.margin)
        else:
            n = int(m.sum())
            changed = np.array([np.abs(own[line[:k]][:, going]).sum(axis=0) for line, k in zip(lines, m, strict=True)])
            place = tuple(m[there].tolist()), tuple(weight[there].tolist()), tuple(sign[there].tolist())
            p[look, going] = [
                stratified_p(tuple(row), *place, looks.margin) for row in changed[there].T.astype(int).tolist()
            ]
        cells, before = cells + int(going.sum()) * (n - before), n
        named, continues = looks.verdicts(p[: look + 1])
        going = going & continues
    return cells, named


def at_margin(sweep: Recorded) -> Recorded:
    """The sweep with losses of `MARGIN`: in five of six variants, items are restored or lost, those with the largest
    margins first lost and last restored."""
    changes, far = sweep.changes.copy(), np.argsort(-np.abs(sweep.margin))
    for variant in range(changes.shape[1]):
        if variant % 6:
            extra = round(-changes[:, variant].sum() - MARGIN * len(far))
            lost = far[changes[far, variant] < 0][::-1]
            same = far[sweep.right[far] & (changes[far, variant] == 0)]
            changes[lost[: max(0, extra)], variant] = 0
            changes[same[: max(0, -extra)], variant] = -1
    return Recorded(sweep.right, sweep.margin, changes, sweep.clusters)


def rates(sweep: Recorded, cap: int, order: str, runs: int) -> Float[np.ndarray, " 4"]:
    """With five looks up to the `cap`: items per variant, power, false discovery rate and its standard error."""
    generator, strata, truth = np.random.default_rng(0), by_rightness(sweep), sweep.changes.mean(axis=0)
    looks, rows = Looks(tuple(cap * look // 5 for look in range(1, 6)), MARGIN), []
    for run in range(runs):
        judged = np.arange(len(truth)) % 2 == run % 2
        cells, named = one_sweep(sweep, strata, looks, order, generator, judged)
        losing = truth[judged] < -MARGIN - 1e-9
        power = named[losing].mean() if losing.any() else np.nan
        rows.append((cells / judged.sum(), power, (named & ~losing).sum() / max(1, named.sum())))
    found = np.array(rows)
    return np.append(found.mean(axis=0), found[:, 2].std() / runs**0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, metavar="RUNS", help="folder of the sweeps")
    parser.add_argument("--times", type=int, default=200, help="how often the items are resampled")
    arguments = parser.parse_args()
    sweeps = {name: recorded(*own, arguments.folder / name.replace(" ", "_")) for name, own in SWEEPS.items()}
    # The heads of the sweep lose too little to be detected, so some layers that lose much stand for heads that matter.
    mixed = np.concatenate(
        [sweeps["every third head"].changes, sweeps["layers"].changes[:, [2, 11, 22, 23, 28, 29]]], axis=1
    )
    heads = sweeps.pop("every third head")
    sweeps["heads and six layers"] = Recorded(heads.right, heads.margin, mixed, heads.clusters)
    print("sweep, order, cap: items per variant, power, false discovery rate ± standard error")
    for name, sweep in sweeps.items():
        for order in ORDERS:
            for cap in CAPS:
                found = rates(sweep, cap, order, arguments.times)
                print(name, order, cap, *found.round(3), sep=" | ", flush=True)
    for name in ("layers", "layers, generate"):
        for order in ORDERS:
            found = rates(at_margin(sweeps[name]), CAPS[-1], order, 2 * arguments.times)
            print(name, "at the margin", order, CAPS[-1], *found.round(3), sep=" | ", flush=True)


if __name__ == "__main__":
    main()
