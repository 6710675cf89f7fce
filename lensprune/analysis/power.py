"""The smallest loss that a sweep can detect."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import scipy
from jaxtyping import Float, Int

from lensprune.analysis.multiplicity import LEVEL
from lensprune.errors import UserError

__all__ = ["FLIPS", "POWER_COLUMNS", "detection_power", "power_line", "power_table", "smallest_loss"]

FLIPS = 0.02
"""Share of items whose outcome changes when an unimportant part is removed; half of them are lost."""
CORRELATION = 0.1
"""Intra-cluster correlation of losses, if items come in clusters."""
POWER = 0.8
POWER_COLUMNS = ("n", "n_clusters", "parts", "flips", "power", "smallest_loss")
_STEP = 0.01
_RARE = 1e-6
_ROUNDING = 1 + 1e-9
_HALVINGS = 60
_MOST = 1_000_000


def _tail(lost: np.ndarray, won: np.ndarray) -> Float[np.ndarray, " pair"]:
    """One-sided exact McNemar p."""
    p: np.ndarray = scipy.stats.binom.sf(lost - 1, lost + won, 0.5)
    return p


def _largest_detected(n: int, parts: int, flips: float) -> float:
    """The p up to which one of `parts` is detected if the others only change items at rate `flips`.

    The step-up of `lensprune.analysis.multiplicity.discrete_bh`, with the expected distribution of the other parts.
    """
    likely = scipy.stats.binom.isf([1 - _RARE, _RARE], n, flips).astype(int)
    changed = np.arange(likely[0], likely[1] + 1)
    weights = scipy.stats.binom.pmf(changed, n, flips)
    # The smallest p of a part with this many changed items is 2^-changed; logarithms, since it may underflow.
    below, above = -(n + 2.0), float(np.log2(LEVEL))
    for _ in range(_HALVINGS):
        middle = (below + above) / 2
        p = 2.0**middle
        fewest = scipy.stats.binom.isf(p * _ROUNDING, changed, 0.5) + 1
        reached = weights @ np.where(fewest <= changed, _tail(fewest, changed - fewest), 0.0)
        enough = (1 + LEVEL) * (p + (parts - 1) * reached) <= LEVEL
        below, above = (middle, above) if enough else (below, middle)
    return float(2.0**below)


def _fewest_lost(won: Int[np.ndarray, " count"], n: int, largest: float) -> Int[np.ndarray, " count"]:
    """How many of n items must be lost for a p of at most `largest`; n + 1 if all are too few."""
    below, above = np.full(won.shape, -1), np.full(won.shape, n + 1)
    while (above - below > 1).any():
        middle = (below + above) // 2
        enough = _tail(middle, won) <= largest * _ROUNDING
        below, above = np.where(enough, below, middle), np.where(enough, middle, above)
    return above


def _lost(n: int, rate: float, n_clusters: int | None) -> Float[np.ndarray, " count"]:
    """Distribution of how many of n items are lost; rates vary between clusters, with correlation `CORRELATION`."""
    counts = np.arange(n + 1)
    if n_clusters is None or n_clusters >= n or rate in (0.0, 1.0):
        law: np.ndarray = scipy.stats.binom.pmf(counts, n, rate)
        return law
    wide = (1 - CORRELATION) / CORRELATION
    law = np.ones(1)
    for size in (len(cluster) for cluster in np.array_split(counts[:-1], n_clusters)):
        pmf = scipy.stats.betabinom.pmf(np.arange(size + 1), size, rate * wide, (1 - rate) * wide)
        law = scipy.signal.fftconvolve(law, pmf)
    return np.maximum(law, 0.0)


def detection_power(loss: float, n: int, parts: int, *, flips: float = FLIPS, n_clusters: int | None = None) -> float:
    """Probability that a part whose removal loses a share `loss` of the items gets `q_loss` ≤ 0.05 among `parts` parts.

    Args:
        loss: share of items, 0 to 1.
        n: number of items.
        parts: number of variants of one (task, protocol), including this one; the others cause no loss.
        flips: share of items that every part changes in addition, half lost and half won.
        n_clusters: number of equally large clusters of items, with losses correlated within them; ``None``: no
            clusters.

    Raises:
        UserError: `n`, `parts` or `n_clusters` is below 1 or above 1,000,000, or a share is outside 0 to 1.
    """
    for what, value in (("items", n), ("parts", parts), ("clusters", 1 if n_clusters is None else n_clusters)):
        if not 1 <= value <= _MOST:
            raise UserError(f"{value} is not a number of {what}: expected 1 to {_MOST}")
    for what, share in (("loss", loss), ("flips", flips)):
        if not 0 <= share <= 1:
            raise UserError(f"{what} {share} is not a share of the items: expected 0 to 1")
    largest = _largest_detected(n, parts, flips)
    won = np.arange(int(scipy.stats.binom.isf(_RARE, n, flips / 2)) + 1)
    enough = np.cumsum(_lost(n, min(1.0, loss + flips / 2), n_clusters)[::-1])[::-1]
    return float(np.append(enough, 0.0)[_fewest_lost(won, n, largest)] @ scipy.stats.binom.pmf(won, n, flips / 2))


def smallest_loss(
    n: int, parts: int, *, flips: float = FLIPS, n_clusters: int | None = None, power: float = POWER
) -> float | None:
    """The smallest loss, in steps of 0.01, that is detected with probability `power`; ``None`` if not even the loss of
    every item is.

    Args:
        n, parts, flips, n_clusters: as for `detection_power`.
    """
    steps = np.arange(1, round(1 / _STEP) + 1) * _STEP
    below, above = -1, len(steps)
    while above - below > 1:
        middle = (below + above) // 2
        enough = detection_power(float(min(1.0, steps[middle])), n, parts, flips=flips, n_clusters=n_clusters) >= power
        below, above = (below, middle) if enough else (middle, above)
    return float(round(steps[above], 2)) if above < len(steps) else None


def power_table(
    items: Sequence[int], parts: int, *, flips: float = FLIPS, clusters_of: Sequence[int] | None = None
) -> pd.DataFrame:
    """`smallest_loss` for each number of items, with the columns `POWER_COLUMNS`; NaN if no loss can be detected.

    Args:
        clusters_of: number of clusters for each entry of `items`; ``None``: items are independent.
    """
    rows = []
    for place, n in enumerate(items):
        n_clusters = None if clusters_of is None else clusters_of[place]
        loss = smallest_loss(n, parts, flips=flips, n_clusters=n_clusters)
        rows.append([n, n if n_clusters is None else n_clusters, parts, flips, POWER, np.nan if loss is None else loss])
    return pd.DataFrame(rows, columns=list(POWER_COLUMNS))


def power_line(n: int, parts: int, n_clusters: int | None = None) -> str:
    """One line of text that states `smallest_loss`."""
    loss = smallest_loss(n, parts, n_clusters=n_clusters)
    given = f"with {n} item{'' if n == 1 else 's'} and {parts} variant{'' if parts == 1 else 's'}"
    if loss is None:
        return f"{given} no loss can be detected: lensprune power shows how many items are needed"
    return f"{given} losses of {loss:.2f} or more are detected with 80% power (see lensprune power)"
