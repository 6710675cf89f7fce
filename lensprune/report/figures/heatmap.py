"""Maps of layers × heads, one panel a quantity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from lensprune.errors import UserError
from lensprune.report.figures.style import SEQUENTIAL, SIGNED, panels

__all__ = ["head_heatmaps"]

_COLUMNS = 4


def head_heatmaps(
    frame: pd.DataFrame,
    *,
    by: str = "score",
    value: str = "value",
    title: str = "",
    unit_range: Sequence[str] = (),
) -> list[Axes]:
    """Draw one map of layers (upwards) × heads for each kind of row.

    Args:
        frame: columns layer, head, `by` and `value`, as `head_scores` gives them.
        by: column that tells the panels apart.
        unit_range: kinds that are drawn on a scale from 0 to 1. Others take the range of their values; where these
            have both signs the scale is symmetric about 0.

    Returns:
        One Axes a panel, all of one figure.

    Raises:
        UserError: nothing to draw.
    """
    kinds = list(dict.fromkeys(frame[by]))
    if not kinds:
        raise UserError("there are no head values to draw")
    n_layers, n_heads = int(frame["layer"].max()) + 1, int(frame["head"].max()) + 1
    size = (min(1.6 + 0.24 * n_heads, 6.0), min(1.3 + 0.16 * n_layers, 7.0))
    _, axes = panels(len(kinds), size=size, columns=_COLUMNS, title=title)
    for ax, kind in zip(axes, kinds, strict=True):
        own = frame[frame[by] == kind]
        table = own.pivot(index="layer", columns="head", values=value).reindex(
            index=range(n_layers), columns=range(n_heads)
        )
        sns.heatmap(table.astype(float), ax=ax, **_scale(table.to_numpy(dtype=float), kind in unit_range))
        ax.invert_yaxis()
        ax.set(title=str(kind), xlabel="head", ylabel="layer")
        ax.tick_params(labelsize=7)
    return axes


def _scale(values: np.ndarray, unit: bool) -> dict[str, Any]:
    finite = values[np.isfinite(values)]
    largest = float(np.abs(finite).max()) if len(finite) else 1.0
    look: dict[str, Any] = {"cbar_kws": {"shrink": 0.7}}
    if len(finite) and finite.min() < 0:
        return {**look, "cmap": SIGNED, "vmin": -(largest or 1.0), "vmax": largest or 1.0}
    return {**look, "cmap": SEQUENTIAL, "vmin": 0.0, "vmax": 1.0 if unit else largest or 1.0}
