"""Many tests at once: false discovery rates of discrete and continuous p-values, and Holm's adjustment."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy
from jaxtyping import Float

from lensprune.analysis.paired_tests import ExactTests

__all__ = ["LEVEL", "benjamini_hochberg", "discrete_bh", "holm"]

LEVEL = 0.05
"""Default false discovery rate at which an effect counts."""
_ROUNDING = 1 + 1e-9


def discrete_bh(tests: ExactTests, level: float = LEVEL, hypotheses: int = 0) -> Float[np.ndarray, " test"]:
    """False-discovery-rate adjusted p-values that account for the values that each discrete p can take.

    The step-up procedure [DBH-SU] of Döhler, Durand & Roquain (2018), "New FDR bounds for discrete and heterogeneous
    tests", Electronic Journal of Statistics 12, 1867–1900, section 3: with F_i(t) the largest value up to t that test i
    can take, m tests, and τ the largest attainable t with mean_i F_i(t) / (1 − F_i(t)) ≤ `level`, the k smallest p are
    rejected for the largest k with p₍ₖ₎ ≤ τ and Σ_i F_i(p₍ₖ₎) / (1 − F_i(τ)) ≤ `level` · k. A test with few changed
    items can't reach a small p, has F_i = 0 there, and so doesn't penalise the others; Benjamini & Hochberg's q counts
    it in full.

    q ≤ α rejects what the procedure rejects at α = `level`, and is conservative at any smaller α; q-values above
    `level` are descriptive only. NaN stays NaN and does not count.

    Args:
        hypotheses: number of parts in question. Those beyond `tests` were never measured: they count with p = 1 and,
            since the values that their p can take are unknown, with F(t) = t.
    """
    q_values = np.full(tests.p.shape, np.nan)
    known = np.flatnonzero(~np.isnan(tests.p))
    if not len(known):
        return q_values
    m = max(hypotheses, len(known))
    counts = np.bincount(tests.law[known], minlength=len(tests.attainable))
    used = np.flatnonzero(counts)
    laws = [tests.attainable[i] for i in used]
    values = np.unique(np.concatenate(laws))
    share = counts[used][:, None] / m
    if m > len(known):
        laws, share = [*laws, values], np.append(share, [[1 - len(known) / m]], axis=0)

    def reached(t: Float[np.ndarray, " value"]) -> Float[np.ndarray, "law value"]:
        places = [np.searchsorted(law, t * _ROUNDING, side="right") for law in laws]
        return np.stack([np.append(0.0, law)[place] for law, place in zip(laws, places, strict=True)])

    def odds(t: Float[np.ndarray, " value"]) -> Float[np.ndarray, " value"]:
        within = np.minimum(reached(t), 1.0)
        with np.errstate(divide="ignore"):
            return (share * within / (1 - within)).sum(axis=0)

    below, above = -1, len(values)
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (middle, above) if odds(values[[middle]])[0] <= level else (below, middle)
    tau = values[below] if below >= 0 else 0.0

    order = known[np.argsort(tests.p[known], kind="stable")]
    p = tests.p[order]
    with np.errstate(divide="ignore"):
        sums = m * (share * reached(p) / (1 - np.minimum(reached(np.maximum(p, tau)), 1.0))).sum(axis=0)
    level_of = np.maximum(sums / np.arange(1, len(known) + 1), odds(p))
    q_values[order] = np.minimum(np.minimum.accumulate(level_of[::-1])[::-1], 1.0)
    return q_values


def benjamini_hochberg(p_values: Float[np.ndarray, " test"]) -> Float[np.ndarray, " test"]:
    """False-discovery-rate adjusted p-values (Benjamini & Hochberg 1995); NaN stays NaN and does not count."""
    q_values = np.full(p_values.shape, np.nan)
    known = ~np.isnan(p_values)
    if known.any():
        q_values[known] = scipy.stats.false_discovery_control(p_values[known])
    return q_values


def holm(p_values: Sequence[float] | Float[np.ndarray, " test"]) -> Float[np.ndarray, " test"]:
    """Family-wise adjusted p-values (Holm 1979); NaN stays NaN and does not count."""
    # statsmodels' multipletests takes a second to import, and collects garbage in each call: 0.2 s with torch loaded.
    adjusted = np.array(p_values, float)
    known = np.flatnonzero(~np.isnan(adjusted))
    order = known[np.argsort(adjusted[known], kind="stable")]
    steps = adjusted[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted
