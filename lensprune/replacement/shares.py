"""How much of the distillation gain each part carries, with paired intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from lensprune.ablation.variants import CLEAN
from lensprune.analysis.intervals import CONFIDENCE, bootstrap_means, mean_intervals
from lensprune.analysis.summary import Group, read_group
from lensprune.replacement.outcomes import ReplacementOutcomes
from lensprune.replacement.parts import WeightChange
from lensprune.replacement.variants import DISTILLED, Replacement
from lensprune.runs.chance import CHANCE_COLUMNS, cell_at_chance
from lensprune.runs.outcomes import computed_once
from lensprune.runs.records import CellKey

__all__ = ["REPLACEMENT_COLUMNS", "gain_shares", "share_intervals"]

REPLACEMENT_COLUMNS = (
    "task", "protocol", "direction", "part", "component", "layer", "head", "alpha", "n", "accuracy_base",
    "accuracy_distilled", "accuracy", "gain", "gain_ci_low", "gain_ci_high", "gain_is_clear", "effect", "ci_low",
    "ci_high", "share", "share_ci_low", "share_ci_high", "weight_change", "weight_change_relative", "at_chance",
)  # fmt: skip


def share_intervals(
    effects: Float[np.ndarray, "item replacement"], gains: Float[np.ndarray, " item"], clusters: np.ndarray | None
) -> tuple[Float[np.ndarray, " replacement"], Float[np.ndarray, " replacement"]]:
    """95% percentile intervals of mean(effect) / mean(gain), items (or clusters) drawn in pairs.

    Meaningful only if the gain's interval excludes 0; a draw without any gain counts as ±∞.
    """
    means = bootstrap_means(np.column_stack([effects, gains]), clusters)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = means[:, :-1] / means[:, -1:]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.nanquantile(ratios, [tail, 1 - tail], axis=0)
    return low, high


@computed_once
def gain_shares(outcomes: ReplacementOutcomes) -> pd.DataFrame:
    """One row per (task, protocol, replacement), with `REPLACEMENT_COLUMNS`.

    `gain` = accuracy(distilled) − accuracy(base) on the same items. `effect` is the part's contribution: forward,
    accuracy(base with it) − accuracy(base); backward, accuracy(distilled) − accuracy(distilled without it). Both are
    positive if the part carries the gain, and `share` = effect / gain; it is empty unless the gain's interval excludes
    0 (`gain_is_clear`). Shares of single parts need not add up to one. `weight_change`: ‖distilled − base‖ over the
    part's weights. `at_chance`: not even the distilled model beats chance.
    """
    rows: list[dict[str, object]] = []
    for task, protocol in outcomes.conditions:
        group = read_group(outcomes, task, protocol)
        if group is not None and CLEAN.name in group.cells and DISTILLED in group.cells:
            distilled = outcomes.cell(CellKey(DISTILLED, task, protocol), list(CHANCE_COLUMNS))
            replacements = [replacement for replacement in outcomes.replacements if replacement.name in group.cells]
            rows.extend(_rows(group, replacements, outcomes.changes, cell_at_chance(distilled)))
    frame = pd.DataFrame(rows, columns=list(REPLACEMENT_COLUMNS))
    return frame.astype({"layer": "Int64", "head": "Int64", "gain_is_clear": "boolean", "at_chance": "boolean"})


def _rows(
    group: Group, replacements: Sequence[Replacement], changes: Mapping[str, WeightChange], at_chance: bool
) -> list[dict[str, object]]:
    if not replacements:
        return []
    base, distilled = (group.cells[name].correct.astype(float) for name in (CLEAN.name, DISTILLED))
    changed = np.stack([group.cells[replacement.name].correct.astype(float) for replacement in replacements], axis=1)
    forward = np.array([replacement.host == "base" for replacement in replacements])
    effects = np.where(forward, changed - base[:, None], distilled[:, None] - changed)
    gains = distilled - base
    gain, effect = mean_intervals(gains[:, None], group.clusters), mean_intervals(effects, group.clusters)
    clear = bool(gain.low[0] > 0 or gain.high[0] < 0)
    nothing = np.full(len(replacements), np.nan)
    low, high = share_intervals(effects, gains, group.clusters) if clear else (nothing, nothing)
    if clear:
        # If no item differs, there is nothing to resample: the effect's exact interval is used instead.
        unchanged = ~np.any(effects != 0, axis=0)
        ends = np.sort([effect.low / gain.delta[0], effect.high / gain.delta[0]], axis=0)
        low, high = np.where(unchanged, ends[0], low), np.where(unchanged, ends[1], high)
    shared = {
        "task": group.task,
        "protocol": group.protocol,
        "n": len(base),
        "accuracy_base": base.mean(),
        "accuracy_distilled": distilled.mean(),
        "gain": gain.delta[0],
        "gain_ci_low": gain.low[0],
        "gain_ci_high": gain.high[0],
        "gain_is_clear": clear,
        "at_chance": at_chance,
    }
    rows: list[dict[str, object]] = []
    for i, replacement in enumerate(replacements):
        measured = {
            "direction": "forward" if replacement.host == "base" else "backward",
            "part": replacement.label,
            "component": replacement.component,
            "layer": replacement.layer,
            "head": replacement.head,
            "alpha": replacement.alpha,
            "accuracy": changed[:, i].mean(),
            "effect": effect.delta[i],
            "ci_low": effect.low[i],
            "ci_high": effect.high[i],
            "share": effect.delta[i] / gain.delta[0] if clear else np.nan,
            "share_ci_low": low[i],
            "share_ci_high": high[i],
            "weight_change": changes[replacement.label].absolute,
            "weight_change_relative": changes[replacement.label].relative,
        }
        rows.append({**shared, **measured})
    return rows
