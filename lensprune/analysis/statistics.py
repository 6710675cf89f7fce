"""Paired statistics of an ablation: interval and p-value of Δμ.

Everything here takes outcomes of the *same items* with and without a change. Differences are variant − clean, so a
negative Δμ means that the removed part was needed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats

__all__ = [
    "CONFIDENCE",
    "DeltaIntervals",
    "benjamini_hochberg",
    "bootstrap_means",
    "mcnemar_exact",
    "paired_bootstrap",
]

CONFIDENCE = 0.95
RESAMPLES = 5000
_BLOCK = 250
_EQUAL = 1e-12


@dataclass(frozen=True)
class DeltaIntervals:
    """Δμ of each variant with its 95% interval; `n_units` is how many independent units were resampled."""

    delta: Float[np.ndarray, " variant"]
    low: Float[np.ndarray, " variant"]
    high: Float[np.ndarray, " variant"]
    n_units: int


def _units(clusters: Int[np.ndarray, " item"] | None, n: int) -> Int[np.ndarray, " item"]:
    """Index of the unit that each item is resampled with."""
    if clusters is None:
        return np.arange(n)
    codes = np.unique(clusters, return_inverse=True)[1]
    # One cluster can't be resampled: within it, the items are what varies.
    return codes if codes.max(initial=0) > 0 else np.arange(n)


def paired_bootstrap(
    differences: Float[np.ndarray, "item variant"],
    clusters: Int[np.ndarray, " item"] | None = None,
    *,
    largest: float | None = 1.0,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> DeltaIntervals:
    """95% percentile intervals of the mean paired difference (Efron & Tibshirani 1993, §13.3).

    Items are drawn with replacement, or whole clusters where items belong to clusters (at least two); the mean is
    then the ratio of summed differences to drawn items. All variants see the same draws.

    Where every unit (item, or mean of a cluster) has the same difference c, resampling would give a width of zero.
    With 97.5% confidence at most a share e = 1 − 0.025^(1/`n_units`) of the population differs from what n of n units
    showed (Clopper & Pearson 1934), at worst by going to ±`largest`, so the interval is then
    [c − e (largest + c), c + e (largest − c)]: ±e · largest where nothing changed, and from −largest to
    −largest (1 − 2e) where all was lost. Where nothing bounds a difference it is NaN.

    Args:
        differences: correct(variant) − correct(clean), one of −1, 0, 1, or any paired difference.
        clusters: cluster number of each item; ``None`` when items are independent.
        largest: the largest possible |difference| of an item: 1 for outcomes and means of them, 2 for a difference of
            two such; ``None`` for quantities without one, such as nats or logits.
        resamples: number of bootstrap draws.
        seed: of the draws; the same seed gives the same interval.
    """
    n, n_variants = differences.shape
    if n == 0:
        nothing = np.full(n_variants, np.nan)
        return DeltaIntervals(nothing, nothing.copy(), nothing.copy(), 0)
    means = bootstrap_means(differences, clusters, resamples=resamples, seed=seed)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail], axis=0)

    sums, sizes = _sums(differences, clusters)
    n_units = len(sizes)
    delta = differences.mean(axis=0)
    constant = np.ptp(sums / sizes[:, None], axis=0) <= _EQUAL
    bound = np.nan if largest is None else largest
    unseen = 1 - tail ** (1 / n_units)
    low = np.where(constant, delta - unseen * (bound + delta), low)
    high = np.where(constant, delta + unseen * (bound - delta), high)
    return DeltaIntervals(delta, low, high, n_units)


def _sums(
    differences: Float[np.ndarray, "item variant"], clusters: Int[np.ndarray, " item"] | None
) -> tuple[Float[np.ndarray, "unit variant"], Float[np.ndarray, " unit"]]:
    """Summed differences and number of items of each unit."""
    unit = _units(clusters, len(differences))
    n_units = int(unit.max()) + 1
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

    All variants see the same draws.
    """
    sums, sizes = _sums(differences, clusters)
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


def mcnemar_exact(
    clean: Bool[np.ndarray, " item"], variants: Bool[np.ndarray, "item variant"]
) -> Float[np.ndarray, " variant"]:
    """Two-sided exact McNemar p-value of each variant against clean (binomial test on discordant items).

    Items count as independent, clusters or not. Without a discordant item, p is 1.
    """
    lost = (clean[:, None] & ~variants).sum(axis=0)
    won = (~clean[:, None] & variants).sum(axis=0)
    return np.minimum(1.0, 2 * stats.binom.cdf(np.minimum(lost, won), lost + won, 0.5))


def benjamini_hochberg(p_values: Float[np.ndarray, " test"]) -> Float[np.ndarray, " test"]:
    """False-discovery-rate adjusted p-values (Benjamini & Hochberg 1995); NaN stays NaN and does not count."""
    q_values = np.full(p_values.shape, np.nan)
    known = ~np.isnan(p_values)
    if known.any():
        q_values[known] = stats.false_discovery_control(p_values[known])
    return q_values
