"""When a sweep stops measuring a variant: by planned looks at its losses, or by the width of its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy
from jaxtyping import Bool, Float, Int

from lensprune.analysis.intervals import mean_intervals
from lensprune.analysis.multiplicity import LEVEL
from lensprune.analysis.sequential import Looks, loss_p, narrow_enough
from lensprune.errors import UserError
from lensprune.runs.spec import SweepSpec

__all__ = ["Stopping", "UntilWidth", "further", "level_of", "look_intervals", "look_p", "stopping_of"]

STEP = 25
"""Number of items between two looks at an interval's width."""
MOST = 40


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
        """Look every `STEP` items, or less often so that there are at most `MOST` looks."""
        step = max(STEP, -(-cap // MOST))
        return cls((*range(step, cap, step), cap), width)


Stopping = Looks | UntilWidth


def stopping_of(stored: Mapping[str, Any] | None) -> Stopping | None:
    """The stopping rule stored in a spec's ``stopping``."""
    if stored is None:
        return None
    items = tuple(stored["items"])
    return UntilWidth(items, stored["width"]) if "width" in stored else Looks(items, stored["margin"], stored["q"])


def level_of(spec: SweepSpec) -> float:
    """The false discovery rate of a run: that of its planned looks, or `LEVEL`."""
    stopping = stopping_of(spec.stopping)
    return stopping.level if isinstance(stopping, Looks) else LEVEL


Changes = Sequence[Float[np.ndarray, " item"]]
"""For each part, outcomes without it minus the clean ones (−1, 0 or 1), on the items that were measured."""


def look_p(
    changes: Changes, clusters: Int[np.ndarray, " item"] | None, looks: Looks, upto: int
) -> Float[np.ndarray, "look part"]:
    """p of a loss beyond the margin at each of the first `upto` looks separately; NaN if a part was not measured.

    With clusters, it is the larger of the p for independent items (`loss_p`) and of Student's t over clusters. The same
    clusters recur at every look, so looks are more alike than the boundary assumes, which is conservative.
    """
    p = np.full((upto, len(changes)), np.nan)
    for look, n in enumerate(looks.items[:upto]):
        there = [part for part, own in enumerate(changes) if len(own) >= n]
        if not there:
            continue
        own = np.stack([changes[part][:n] for part in there], axis=1)
        found = loss_p((own < 0).sum(axis=0), (own > 0).sum(axis=0), n, looks.margin)
        if clusters is not None:
            shifted = mean_intervals(own + looks.margin, clusters[:n], bounds=(looks.margin - 1, looks.margin + 1))
            found = np.fmax(found, shifted.p_negative)
        p[look, there] = found
    return p


def further(
    changes: Changes, clusters: Int[np.ndarray, " item"] | None, stopping: Stopping, upto: int
) -> Bool[np.ndarray, " part"]:
    """Which parts continue with the next block of items, after `upto` blocks."""
    n = stopping.items[upto - 1]
    there = np.array([len(own) >= n for own in changes], bool)
    if upto >= len(stopping.items):
        return np.zeros(len(changes), bool)
    if isinstance(stopping, Looks):
        return there & stopping.verdicts(look_p(changes, clusters, stopping, upto))[1]
    open_parts = there.copy()
    if there.any():
        own = np.stack([changes[part][:n] for part in np.flatnonzero(there).tolist()], axis=1)
        interval = mean_intervals(own, None if clusters is None else clusters[:n])
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
        own = mean_intervals(changes, clusters)
        low = np.fmin(low, np.fmax(own.delta - wider * (own.delta - own.low), -1))
        high = np.fmax(high, np.fmin(own.delta + wider * (own.high - own.delta), 1))
    return low, high
