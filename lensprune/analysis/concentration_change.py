"""Change of the concentration of effects with training: students against the base, seed by seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy

from lensprune.analysis.concentration import concentration_statistics
from lensprune.analysis.head_effects import ItemEffects
from lensprune.analysis.intervals import CONFIDENCE, bootstrap_means, centred_quantiles
from lensprune.errors import UserError

__all__ = ["OVER_SEEDS_COLUMNS", "PER_SEED_COLUMNS", "STATISTICS", "Comparison", "compare", "over_seeds"]

STATISTICS = ("gini", "participation_ratio")
"""Gini index (1: a single part carries everything) and effective number of parts (`concentration_statistics`)."""

PER_SEED_COLUMNS = (
    "student", "task", "component", "statistic", "seed", "n", "n_parts", "accuracy_base", "accuracy", "base", "value",
    "difference", "ci_low", "ci_high",
)  # fmt: skip
OVER_SEEDS_COLUMNS = (
    "student", "task", "component", "statistic", "n_seeds", "base", "value", "difference", "ci_low", "ci_high",
    "answer",
)  # fmt: skip
_FEWEST_SEEDS = 2


@dataclass(frozen=True)
class Comparison:
    """Effects of the same parts on the same items in the base and in another student of one training seed."""

    student: str
    seed: int
    component: str
    base: ItemEffects
    other: ItemEffects
    accuracy_base: float
    accuracy: float


def compare(comparison: Comparison, *, losses: bool = False, resamples: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Concentration in both models and its difference, student − base; one row per statistic, `PER_SEED_COLUMNS`.

    `ci_low`, `ci_high`: 95% bootstrap of the difference over items, the same items for both models, moved by its bias
    (`centred_quantiles`). If all effects of either model are 0, the values are NaN.

    Args:
        losses: count only parts whose removal lowers the measure, and treat gains as 0.

    Raises:
        UserError: the two models' parts or numbers of items differ.
    """
    base, other = comparison.base, comparison.other
    if base.variants != other.variants or base.differences.shape != other.differences.shape:
        raise UserError("the base and the other model were not swept over the same parts on the same items")
    parts = len(base.variants)
    both = np.concatenate([base.differences, other.differences], axis=1)
    draws = bootstrap_means(both, base.clusters, resamples=resamples, seed=seed)
    highest = 0.0 if losses else np.inf
    drawn = [
        concentration_statistics(np.minimum(draws[:, of_model], highest), ())
        for of_model in (slice(parts), slice(parts, None))
    ]
    statistics = [concentration_statistics(np.minimum(effects.effects, highest), ()) for effects in (base, other)]
    rows = []
    for name in STATISTICS:
        values = [float(one[name]) for one in statistics]
        low, high = centred_quantiles(drawn[1][name] - drawn[0][name], values[1] - values[0])
        names = [comparison.student, base.task, comparison.component, name, comparison.seed]
        shape = [len(both), parts, comparison.accuracy_base, comparison.accuracy]
        rows.append([*names, *shape, *values, values[1] - values[0], low, high])
    return pd.DataFrame(rows, columns=list(PER_SEED_COLUMNS))


def over_seeds(per_seed: pd.DataFrame) -> pd.DataFrame:
    """Mean over training seeds of both models and their difference; one row per (student, task, component, statistic).

    `ci_low`, `ci_high`: 95% interval of the mean difference by Student's t over seeds, the independent units here;
    empty for a single seed. `answer`: ``spreads`` or ``concentrates`` if the interval excludes 0, else
    ``not resolved``. Seeds with NaN values are left out.
    """
    rows = []
    for key, seeds in per_seed.groupby(["student", "task", "component", "statistic"], sort=False):
        known = seeds.dropna(subset=["difference"])
        low, high = _t_interval(known["difference"].to_numpy())
        means = [float(known[column].mean()) for column in ("base", "value", "difference")]
        rows.append([*key, len(known), *means, low, high, _answer(str(key[-1]), low, high)])
    return pd.DataFrame(rows, columns=list(OVER_SEEDS_COLUMNS))


def _t_interval(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    if len(values) < _FEWEST_SEEDS:
        return np.nan, np.nan
    half = scipy.stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return float(np.mean(values) - half), float(np.mean(values) + half)


def _answer(statistic: str, low: float, high: float) -> str:
    if not (low > 0 or high < 0):
        return "not resolved"
    larger = low > 0
    return "spreads" if larger == (statistic == "participation_ratio") else "concentrates"
