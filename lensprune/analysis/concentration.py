"""Concentration of effects: whether few or many heads carry a task, with intervals and a noise null."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from lensprune.analysis.head_effects import ItemEffects
from lensprune.analysis.intervals import CONFIDENCE, bootstrap_means, centred_quantiles, unit_sums
from lensprune.analysis.randomization import TOLERANCE
from lensprune.errors import UserError

__all__ = [
    "CONCENTRATION_COLUMNS",
    "TOP",
    "concentration",
    "concentration_of",
    "concentration_statistics",
    "concentration_table",
    "lorenz",
    "null_effects",
]

TOP = (1, 5, 10)
RESAMPLES = 2000
_BLOCK = 50

CONCENTRATION_COLUMNS = (
    "statistic",
    "value",
    "ci_low",
    "ci_high",
    "null_mean",
    "null_low",
    "null_high",
    "p_value",
)
_SMALL_IS_CONCENTRATED = ("participation_ratio", "entropy")


def concentration_statistics(
    effects: Float[np.ndarray, "*draws part"], top: Sequence[int] = TOP
) -> dict[str, Float[np.ndarray, "*draws"]]:
    """Measure how concentrated effect sizes are; with p = |effect| / Σ|effect| and n parts:

    - ``share_top_k``: sum of the k largest p;
    - ``gini``: Σᵢ (2i − n − 1) p₍ᵢ₎ / n over p in ascending order (0: all equal; (n − 1)/n: a single part);
    - ``participation_ratio``: 1 / Σ p², the effective number of parts (Hill number of order 2);
    - ``entropy``: −Σ p ln p, nats (ln n when all are equal).

    All are NaN if every effect is 0. ``share_top_k`` is left out for k above n.
    """
    sizes = np.sort(np.abs(effects), axis=-1)
    n = sizes.shape[-1]
    total = sizes.sum(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = np.where(total > 0, sizes / total, np.nan)
        entropy = -(shares * np.log(np.where(shares > 0, shares, 1.0))).sum(axis=-1)
        ratio = 1 / (shares**2).sum(axis=-1)
    largest = {f"share_top_{k}": shares[..., -k:].sum(axis=-1) for k in top if k <= n}
    weights = (2 * np.arange(1, n + 1) - n - 1) / n
    return {**largest, "gini": shares @ weights, "participation_ratio": ratio, "entropy": entropy}


def null_effects(
    differences: Float[np.ndarray, "item part"], draws: int, seed: int = 0
) -> Float[np.ndarray, "draw part"]:
    """Mean effects after permuting each item's differences (or each cluster's sums) over the parts.

    Items keep their losses and gains, but all parts become exchangeable: the remaining concentration is noise.
    """
    generator = np.random.default_rng(seed)
    n, parts = differences.shape
    means = np.empty((draws, parts))
    for start in range(0, draws, _BLOCK):
        stop = min(start + _BLOCK, draws)
        dealt = generator.permuted(np.broadcast_to(differences, (stop - start, n, parts)), axis=2)
        means[start:stop] = dealt.mean(axis=1)
    return means


def concentration(
    differences: Float[np.ndarray, "item part"],
    clusters: Int[np.ndarray, " item"] | None = None,
    *,
    top: Sequence[int] = TOP,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Concentration of the parts' mean effects, with intervals and p-values.

    Args:
        differences: measure with the part removed minus the clean measure.
        clusters: cluster of each item; clusters are resampled whole.
        top: the values of k for ``share_top_k``.

    Returns:
        One row per statistic (`concentration_statistics`). `ci_low`, `ci_high`: 95% bootstrap interval over items,
        shifted by its bias (`centred_quantiles`): the range expected for another sample of as many items. `null_*`:
        mean and 95% range under `null_effects`. `p_value`: one-sided, the share of null draws that are at least as
        concentrated, (1 + as concentrated) / (1 + draws); NaN if every effect is 0.

    Raises:
        UserError: no items or no parts, or a k that is not positive.
    """
    if 0 in differences.shape:
        raise UserError("concentration needs at least one item and one part")
    if any(k < 1 for k in top):
        raise UserError(f"top {min(top)} is not a number of parts: expected 1 or more")
    observed = concentration_statistics(differences.mean(axis=0), top)
    resampled = concentration_statistics(bootstrap_means(differences, clusters, resamples=resamples, seed=seed), top)
    sums, _ = unit_sums(differences, clusters)
    null = concentration_statistics(null_effects(sums, resamples, seed), top)
    tails = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    rows = []
    for name, value in observed.items():
        low, high = centred_quantiles(resampled[name], float(value))
        null_low, null_high = _quantiles(null[name], tails)
        sign = -1 if name in _SMALL_IS_CONCENTRATED else 1
        known = null[name][~np.isnan(null[name])]
        # Many draws have the same statistic, up to the order of summation.
        at_least = int((sign * known >= sign * value - TOLERANCE).sum())
        p_value = np.nan if np.isnan(value) else (1 + at_least) / (1 + len(known))
        null_mean = float(known.mean()) if len(known) else np.nan
        rows.append([name, float(value), low, high, null_mean, null_low, null_high, p_value])
    return pd.DataFrame(rows, columns=list(CONCENTRATION_COLUMNS))


def _quantiles(draws: np.ndarray, tails: list[float]) -> tuple[float, float]:
    known = draws[~np.isnan(draws)]
    if not len(known):
        return np.nan, np.nan
    low, high = np.quantile(known, tails)
    return float(low), float(high)


def concentration_of(effects: ItemEffects, *, top: Sequence[int] = TOP, seed: int = 0) -> pd.DataFrame:
    """`concentration` of one (task, protocol) of a run, with columns that identify it."""
    frame = concentration(effects.differences, effects.clusters, top=top, seed=seed)
    facts: dict[str, str | int | float | bool] = {
        "task": effects.task,
        "protocol": effects.protocol,
        "measure": effects.measure,
        "n_parts": len(effects.variants),
        "n": len(effects.differences),
        "total_effect": float(np.abs(effects.effects).sum()),
        "at_chance": effects.at_chance,
    }
    for place, (name, value) in enumerate(facts.items()):
        frame.insert(place, name, value)
    return frame


def concentration_table(effects: Sequence[ItemEffects], *, top: Sequence[int] = TOP, seed: int = 0) -> pd.DataFrame:
    """`concentration_of` every (task, protocol), in one table."""
    return pd.concat(
        [concentration_of(of_condition, top=top, seed=seed) for of_condition in effects], ignore_index=True
    )


def lorenz(effects: Float[np.ndarray, "*draws part"]) -> Float[np.ndarray, "*draws points"]:
    """Share of the total absolute effect held by the strongest 0, 1, …, n parts."""
    sizes = -np.sort(-np.abs(effects), axis=-1)
    total = sizes.sum(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore"):
        shares = np.where(total > 0, np.cumsum(sizes, axis=-1) / total, np.nan)
    return np.concatenate([np.zeros((*sizes.shape[:-1], 1)), shares], axis=-1)
