"""95% intervals of mean paired differences.

Everything here takes measures of the *same items* with and without a change. Differences are variant − clean, so a
negative mean says that the removed part was needed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy
from jaxtyping import Float, Int

__all__ = [
    "CONFIDENCE",
    "MeanIntervals",
    "bootstrap_means",
    "centred_quantiles",
    "mean_intervals",
    "score_z",
    "tango",
    "unit_sums",
]

CONFIDENCE = 0.95
RESAMPLES = 5000
_BLOCK = 250
_EQUAL = 1e-12
_TAIL = (1 - CONFIDENCE) / 2
_HALVINGS = 50


@dataclass(frozen=True)
class MeanIntervals:
    """Mean difference of each variant with its 95% interval; `n_units` is the number of independent units.

    `p_negative`: one-sided p for the mean not being below 0; at most 0.025 if the interval lies below 0.
    """

    delta: Float[np.ndarray, " variant"]
    low: Float[np.ndarray, " variant"]
    high: Float[np.ndarray, " variant"]
    p_negative: Float[np.ndarray, " variant"]
    n_units: int


def mean_intervals(
    differences: Float[np.ndarray, "item variant"],
    clusters: Int[np.ndarray, " item"] | None = None,
    *,
    bounds: tuple[float, float] | None = (-1.0, 1.0),
) -> MeanIntervals:
    """95% interval of the mean difference of each variant.

    * Independent items with bounds −1 and 1 and all differences −1, 0 or 1: Tango's score interval (`tango`).
    * Other independent items: Student's t with n − 1 degrees of freedom.
    * At least two clusters: Student's t over whole clusters; the mean is the ratio of summed differences to items. With
      h the clusters' shares of the items, the squared residual of each is divided by 1 − h, since a large cluster pulls
      the mean towards itself (Bell & McCaffrey 2002), and there are 1 / Σh² − 1 degrees of freedom, at least 1, since
      large clusters count for more (Kish 1965, section 11.7). Equal clusters: their number − 1. A few clusters can look
      alike by accident, so the interval always contains that for independent items.
    * If every unit has the same mean c, there is no variance. With 97.5% confidence, at most a share
      e = 1 − 0.025^(1/`n_units`) of the population differs from the observed units (Clopper & Pearson 1934), at worst
      by reaching a bound, so the interval is [c − e (c − lowest), c + e (highest − c)]. Without bounds it is NaN.

    Args:
        differences: correct(variant) − correct(clean), one of −1, 0, 1, or any other measure.
        clusters: cluster number of each item; ``None`` if items are independent.
        bounds: lowest and highest possible difference of an item; ``None`` for nats and logits, which are unbounded.
    """
    n, n_variants = differences.shape
    if n == 0:
        nothing = np.full(n_variants, np.nan)
        return MeanIntervals(nothing, nothing.copy(), nothing.copy(), nothing.copy(), 0)
    alone = _by_student(differences, np.ones(n), bounds)
    if bounds in ((-1, 1), (-2, 2)):
        outcomes = np.isin(differences, (-1, 0, 1)).all(axis=0) & (np.ptp(differences, axis=0) > 0)
        lost, won = ((differences[:, outcomes] == sign).sum(axis=0) for sign in (-1, 1))
        alone.low[outcomes], alone.high[outcomes] = tango(lost, won, n)
        alone.p_negative[outcomes] = scipy.stats.norm.cdf(score_z(lost, won, n, 0.0))
    sums, sizes = unit_sums(differences, clusters)
    if len(sizes) == n:
        return alone
    whole = _by_student(sums, sizes, bounds)
    return MeanIntervals(
        whole.delta,
        np.fmin(alone.low, whole.low),
        np.fmax(alone.high, whole.high),
        np.fmax(alone.p_negative, whole.p_negative),
        len(sizes),
    )


def _by_student(
    sums: Float[np.ndarray, "unit variant"], sizes: Float[np.ndarray, " unit"], bounds: tuple[float, float] | None
) -> MeanIntervals:
    """Student's t interval over independent units of these sizes, or the interval for units that are all alike."""
    n_units = len(sizes)
    delta = sums.sum(axis=0) / sizes.sum()
    shares = sizes / sizes.sum()
    # Equal sizes have no rounding: their effective number is exact.
    freedom = max(1.0, n_units - 1 if np.ptp(sizes) == 0 else 1 / (shares**2).sum() - 1)
    residuals = sums / sizes[:, None] - delta
    lowest, highest = bounds or (np.nan, np.nan)
    unseen = 1 - _TAIL ** (1 / n_units)
    alike = np.ptp(sums / sizes[:, None], axis=0) <= _EQUAL
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.sqrt((shares**2 / (1 - shares)) @ residuals**2)
        half = scipy.stats.t.ppf(1 - _TAIL, freedom) * error
        low = np.where(alike, delta - unseen * (delta - lowest), np.fmax(delta - half, lowest))
        high = np.where(alike, delta + unseen * (highest - delta), np.fmin(delta + half, highest))
        p = scipy.stats.t.cdf(delta / error, freedom)
        # All units alike: one minus the confidence at which the upper end is 0.
        p = np.where(alike, np.where(delta < 0, (highest / (highest - delta)) ** n_units, 1.0), p)
    return MeanIntervals(delta, low, high, p, n_units)


def tango(
    lost: Int[np.ndarray, " variant"], won: Int[np.ndarray, " variant"], n: int, *, z: float | None = None
) -> tuple[Float[np.ndarray, " variant"], Float[np.ndarray, " variant"]]:
    """Score interval of the difference of two paired proportions, (won − lost) / n; 95% unless another `z` is given.

    Tango (1998), "Equivalence test and confidence interval for the difference in proportions for the paired-sample
    design", Statistics in Medicine 17, 891–908, section 3: the differences δ with |`score_z`| ≤ `z`.
    """
    if z is None:
        z = float(scipy.stats.norm.ppf(1 - _TAIL))
    difference = (won - lost) / n
    ends = []
    for bound in (-1.0, 1.0):
        outside, inside = np.full(difference.shape, bound), difference.copy()
        for _ in range(_HALVINGS):
            middle = (outside + inside) / 2
            within = np.abs(score_z(lost, won, n, middle)) <= z
            outside, inside = np.where(within, outside, middle), np.where(within, middle, inside)
        ends.append(inside)
    return ends[0], ends[1]


def score_z(
    lost: Int[np.ndarray, " variant"],
    won: Int[np.ndarray, " variant"],
    n: int,
    delta: Float[np.ndarray, " variant"] | float,
) -> Float[np.ndarray, " variant"]:
    """(won − lost − n δ) divided by its standard error under δ, with P(lost) at its maximum-likelihood estimate given
    δ; 0 if both vanish."""
    linear = (2 * n - won + lost) * delta - won - lost
    root = np.sqrt(np.maximum(linear**2 + 8 * n * lost * delta * (1 - delta), 0.0))
    loss_rate = (root - linear) / (4 * n)
    variance = np.maximum(n * (2 * loss_rate + delta * (1 - delta)), 0.0)
    distance = won - lost - n * delta
    with np.errstate(divide="ignore", invalid="ignore"):
        z: Float[np.ndarray, " variant"] = np.where(np.abs(distance) < _EQUAL, 0.0, distance / np.sqrt(variance))
    return z


def centred_quantiles(draws: Float[np.ndarray, " draw"], value: float) -> tuple[float, float]:
    """Ends of a bias-shifted 95% bootstrap interval of a statistic whose estimate is `value`.

    Resampling adds noise once more to a statistic such as a Gini index, so its draws are biased. The interval is the
    percentile interval shifted by that bias (mean of the draws − `value`): it says how much the statistic varies from
    one sample of items to the next. NaN draws are left out; if all are NaN, so is the interval.
    """
    known = draws[~np.isnan(draws)]
    if not len(known) or np.isnan(value):
        return np.nan, np.nan
    low, high = np.quantile(known, [_TAIL, 1 - _TAIL]) - (known.mean() - value)
    return float(min(low, value)), float(max(high, value))


def _units(clusters: Int[np.ndarray, " item"] | None, n: int) -> Int[np.ndarray, " item"]:
    """Index of the independent unit that each item belongs to."""
    if clusters is None:
        return np.arange(n)
    codes = np.unique(clusters, return_inverse=True)[1]
    # A single cluster has no variance between units: its items are the units.
    return codes if codes.max(initial=0) > 0 else np.arange(n)


def unit_sums(
    differences: Float[np.ndarray, "item variant"], clusters: Int[np.ndarray, " item"] | None
) -> tuple[Float[np.ndarray, "unit variant"], Float[np.ndarray, " unit"]]:
    """Summed differences and number of items of each unit: a cluster, or an item if there are no clusters."""
    unit = _units(clusters, len(differences))
    n_units = int(unit.max(initial=-1)) + 1
    sums = np.zeros((n_units, differences.shape[1]))
    np.add.at(sums, unit, differences)
    return sums, np.bincount(unit, minlength=n_units).astype(float)


def bootstrap_means(
    differences: Float[np.ndarray, "item variant"],
    clusters: Int[np.ndarray, " item"] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Float[np.ndarray, "draw variant"]:
    """Means of resampled items, or of whole resampled clusters (summed differences over drawn items).

    All variants use the same draws.
    """
    sums, sizes = unit_sums(differences, clusters)
    n_units, n_variants = sums.shape

    generator = np.random.default_rng(seed)
    means = np.empty((resamples, n_variants))
    for start in range(0, resamples, _BLOCK):
        stop = min(start + _BLOCK, resamples)
        drawn = generator.integers(0, n_units, size=(stop - start, n_units))
        offsets = np.arange(stop - start)[:, None] * n_units
        counts = np.bincount((drawn + offsets).ravel(), minlength=(stop - start) * n_units)
        weights = counts.reshape(stop - start, n_units).astype(float)
        means[start:stop] = (weights @ sums) / (weights @ sizes)[:, None]
    return means
