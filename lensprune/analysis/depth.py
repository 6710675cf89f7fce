"""Δμ of depth bands: the first 30% of layers, the middle, and the last 30% (arXiv 2510.02091)."""

from __future__ import annotations

import numpy as np
import pandas as pd

from lensprune.ablation.variants import CLEAN
from lensprune.analysis.intervals import mean_intervals
from lensprune.analysis.summary import read_group
from lensprune.runs.outcomes import Outcomes

__all__ = ["BANDS", "band_of", "depth_bands"]

BANDS = ("first", "middle", "last")
_COLUMNS = [
    "task",
    "protocol",
    "component",
    "ablation",
    "band",
    "n_layers",
    "n",
    "mean_delta",
    "ci_low",
    "ci_high",
    "worst_delta",
    "at_chance",
]


def band_of(layer: int, n_layers: int) -> str:
    """The band of a layer: ``first`` below 30% of the depth, ``last`` from 70% on, else ``middle``."""
    if 10 * layer < 3 * n_layers:
        return "first"
    return "last" if 10 * layer >= 7 * n_layers else "middle"


def depth_bands(outcomes: Outcomes, task: str | None = None, protocol: str | None = None) -> pd.DataFrame:
    """Mean Δμ over the swept layers of each band, for each kind of component and ablation.

    `mean_delta`: mean Δμ over the band's layers, removed one at a time (heads: over all swept heads of the layers);
    `ci_low`, `ci_high`: paired 95% interval over items, for fixed layers; `worst_delta`: the lowest Δμ in the band;
    `n_layers`: how many of the band's layers were swept. Ignore bands that are ``at_chance``.

    Raises:
        UserError: a name that is not part of this run.
    """
    rows = []
    n_layers = outcomes.spec.n_layers
    for one_task, one_protocol in outcomes.select(task, protocol):
        group = read_group(outcomes, one_task, one_protocol)
        if group is None or group.clean is None:
            continue
        parts: dict[tuple[str, str, str], list[str]] = {}
        for name, cell in group.cells.items():
            layer = cell.facts["layer"]
            if name != CLEAN.name and isinstance(layer, int):
                kind = (str(cell.facts["component"]), str(cell.facts["ablation"]), band_of(layer, n_layers))
                parts.setdefault(kind, []).append(name)
        for (component, ablation, band), names in sorted(
            parts.items(), key=lambda p: (*p[0][:2], BANDS.index(p[0][2]))
        ):
            correct = np.stack([group.cells[name].correct for name in names], axis=1)
            differences = correct.astype(float) - group.clean.correct[:, None]
            interval = mean_intervals(differences.mean(axis=1, keepdims=True), group.clusters)
            rows.append(
                [
                    one_task,
                    one_protocol,
                    component,
                    ablation,
                    band,
                    len({group.cells[name].facts["layer"] for name in names}),
                    len(differences),
                    float(interval.delta[0]),
                    float(interval.low[0]),
                    float(interval.high[0]),
                    float(differences.mean(axis=0).min()),
                    group.at_chance,
                ]
            )
    return pd.DataFrame(rows, columns=_COLUMNS)
