"""When a sweep stops measuring a variant: by planned looks at its losses, by e-values, which are valid at any time, or
by the width of its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy
from jaxtyping import Bool, Float, Int

from lensprune.analysis.intervals import mean_intervals
from lensprune.analysis.multiplicity import LEVEL
from lensprune.analysis.sequential import FUTILITY, Looks, e_bh, e_values, loss_p, narrow_enough
from lensprune.errors import UserError
from lensprune.runs.spec import SweepSpec

__all__ = [
    "AnyLook",
    "Stopping",
    "UntilWidth",
    "counts_of",
    "further",
    "hypotheses_of",
    "level_of",
    "look_intervals",
    "look_p",
    "n_ranked",
    "stopping_json",
    "stopping_of",
]

STEP = 25
"""Number of items between two looks that are not planned."""
MAX_STEPS = 40


Changes = Sequence[Float[np.ndarray, " item"]]
"""For each part, outcomes without it minus the clean ones (−1, 0 or 1), on the items that were measured."""


def counts_of(changes: Changes) -> tuple[Int[np.ndarray, " part"], Int[np.ndarray, " part"], Int[np.ndarray, " part"]]:
    """Numbers of items that each part loses, wins and was measured on."""
    counts = [((change < 0).sum(), (change > 0).sum(), len(change)) for change in changes]
    return tuple(np.array(counts, int).reshape(-1, 3).T)  # type: ignore[return-value]


@dataclass(frozen=True)
class UntilWidth:
    """Each variant is measured until its own 95% interval is no wider than `width`, or up to the last of `items`.

    Raises:
        UserError: a width that an interval of Δμ can't have.
    """

    items: tuple[int, ...]
    width: float

    def __post_init__(self) -> None:
        if not 0 < self.width < 2:
            raise UserError(f"width {self.width:g} of an interval of Δμ: expected a number between 0 and 2, like 0.1")

    @classmethod
    def up_to(cls, cap: int, width: float) -> UntilWidth:
        return cls(_every_step(cap), width)


@dataclass(frozen=True)
class AnyLook:
    """Each variant is measured until its e-value shows that it loses more than `margin`, or the opposite one that it
    loses less, or up to the last of `items`. The verdicts are valid whenever the sweep is stopped, also by hand."""

    items: tuple[int, ...]
    margin: float = 0.05
    level: float = LEVEL

    def __post_init__(self) -> None:
        Looks((1,), self.margin, self.level)

    @classmethod
    def up_to(cls, cap: int, margin: float, level: float) -> AnyLook:
        return cls(_every_step(cap), margin, level)

    def values(self, changes: Changes) -> Float[np.ndarray, " part"]:
        """Evidence that each part loses more than the margin."""
        return e_values(*counts_of(changes), self.margin)

    def q(self, changes: Changes, hypotheses: int) -> Float[np.ndarray, " part"]:
        """False discovery rate of the parts (`e_bh`) among so many that are in question."""
        never = np.zeros(max(0, hypotheses - len(changes)))
        return e_bh(np.append(self.values(changes), never))[: len(changes)]

    def open_parts(self, changes: Changes, hypotheses: int) -> Bool[np.ndarray, " part"]:
        """Parts that are neither detected nor given up."""
        lost, won, n = counts_of(changes)
        given_up = e_values(won, lost, n, -self.margin) >= 1 / FUTILITY
        return ~given_up & (self.q(changes, hypotheses) > self.level)


def _every_step(cap: int) -> tuple[int, ...]:
    """Every `STEP` items, or less often so that there are at most `MAX_STEPS` looks."""
    step = max(STEP, -(-cap // MAX_STEPS))
    return (*range(step, cap, step), cap)


Stopping = Looks | UntilWidth | AnyLook


def stopping_of(stored: Mapping[str, Any] | None) -> Stopping | None:
    """The stopping rule stored in a spec's ``stopping``."""
    if stored is None:
        return None
    items = tuple(stored["items"])
    if "width" in stored:
        return UntilWidth(items, stored["width"])
    return (AnyLook if stored.get("look") == "any" else Looks)(items, stored["margin"], stored["q"])


def stopping_json(stopping: Stopping) -> dict[str, Any]:
    """What `stopping_of` reads."""
    if isinstance(stopping, UntilWidth):
        return {"items": list(stopping.items), "width": stopping.width}
    stored = {"items": list(stopping.items), "margin": stopping.margin, "q": stopping.level}
    return {**stored, "look": "any"} if isinstance(stopping, AnyLook) else stored


def level_of(spec: SweepSpec) -> float:
    """The false discovery rate of a run: that of its looks, or `LEVEL`."""
    stopping = stopping_of(spec.stopping)
    return LEVEL if stopping is None or isinstance(stopping, UntilWidth) else stopping.level


def hypotheses_of(spec: SweepSpec) -> int:
    """Number of parts in question for each (task, protocol): those of the run, or in a screened one `n_ranked`."""
    return n_ranked(spec) or len(spec.variants) - 1


def n_ranked(spec: SweepSpec) -> int:
    """Number of parts that a screened run ranked, 0 in another run. All are in question, measured or not, because the
    ranking used the same items."""
    return 0 if spec.screen is None else len({row["variant"] for row in spec.screen["estimates"]})


def look_p(
    changes: Changes, clusters: Int[np.ndarray, " item"] | None, looks: Looks, upto: int
) -> Float[np.ndarray, "look part"]:
    """p of a loss beyond the margin at each of the first `upto` looks separately; NaN if a part was not measured.

    With clusters, it is the larger of the p for independent items (`loss_p`) and of Student's t over clusters. The same
    clusters recur at every look, so looks are more alike than the boundary assumes, which is conservative.
    """
    p = np.full((upto, len(changes)), np.nan)
    for look, n in enumerate(looks.items[:upto]):
        there = [part for part, change in enumerate(changes) if len(change) >= n]
        if not there:
            continue
        measured = np.stack([changes[part][:n] for part in there], axis=1)
        p_values = loss_p((measured < 0).sum(axis=0), (measured > 0).sum(axis=0), n, looks.margin)
        if clusters is not None:
            shifted = mean_intervals(measured + looks.margin, clusters[:n], bounds=(looks.margin - 1, looks.margin + 1))
            p_values = np.fmax(p_values, shifted.p_negative)
        p[look, there] = p_values
    return p


def further(
    changes: Changes, clusters: Int[np.ndarray, " item"] | None, stopping: Stopping, upto: int, hypotheses: int
) -> Bool[np.ndarray, " part"]:
    """Which parts continue with the next block of items, after `upto` blocks; `hypotheses` as for `Looks.q`."""
    n = stopping.items[upto - 1]
    there = np.array([len(change) >= n for change in changes], bool)
    if upto >= len(stopping.items):
        return np.zeros(len(changes), bool)
    if isinstance(stopping, AnyLook):
        return there & stopping.open_parts(changes, hypotheses)
    if isinstance(stopping, Looks):
        return there & stopping.verdicts(look_p(changes, clusters, stopping, upto), hypotheses)[1]
    open_parts = there.copy()
    if there.any():
        measured = np.stack([changes[part][:n] for part in np.flatnonzero(there).tolist()], axis=1)
        interval = mean_intervals(measured, None if clusters is None else clusters[:n])
        open_parts[there] = ~narrow_enough(interval.low, interval.high, stopping.width)
    return open_parts


def look_intervals(
    changes: Float[np.ndarray, "item part"], clusters: Int[np.ndarray, " item"] | None, looks: Looks
) -> tuple[Float[np.ndarray, " part"], Float[np.ndarray, " part"]]:
    """Repeated 95% intervals of Δμ (`Looks.intervals`) of parts measured on the same items.

    With clusters, they also contain the interval over clusters, widened by the ratio of the look's boundary to that of
    a single look.
    """
    look = looks.items.index(len(changes))
    low, high = looks.intervals((changes < 0).sum(axis=0), (changes > 0).sum(axis=0), look)
    if clusters is not None:
        wider = looks.critical(look) / float(scipy.stats.norm.ppf(0.975))
        intervals = mean_intervals(changes, clusters)
        low = np.fmin(low, np.fmax(intervals.delta - wider * (intervals.delta - intervals.low), -1))
        high = np.fmax(high, np.fmin(intervals.delta + wider * (intervals.high - intervals.delta), 1))
    return low, high
