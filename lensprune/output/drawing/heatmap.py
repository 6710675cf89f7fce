"""Maps of layers × heads, one panel per quantity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from lensprune.errors import UserError
from lensprune.output.drawing.style import SEQUENTIAL, SIGNED, panels

__all__ = ["head_heatmaps"]

_COLUMNS = 4
_MLP = "MLP"


def head_heatmaps(
    frame: pd.DataFrame,
    *,
    by: str = "score",
    value: str = "value",
    title: str = "",
    unit_range: Sequence[str] = (),
    label: str = "",
) -> list[Axes]:
    """Draw one map of layers (upwards) × heads for each kind of row.

    Args:
        frame: columns layer, head, `by` and `value`, as `head_scores` gives them. Rows whose head is missing are
            of the layer's MLP, which gets a column of its own on the right.
        by: column that tells the panels apart.
        unit_range: kinds that are drawn on a scale from 0 to 1. Others take the range of their values; where these
            have both signs in any panel the scales are symmetric about 0.
        label: what the values are, with their unit, beside the colours.

    Returns:
        One Axes per panel, all of one figure.

    Raises:
        UserError: nothing to draw.
    """
    kinds = list(dict.fromkeys(frame[by]))
    if not kinds:
        raise UserError("there are no head values to draw")
    frame = frame.assign(head=frame["head"].fillna(-1).astype(int))
    n_layers, n_heads = int(frame["layer"].max()) + 1, int(frame["head"].max()) + 1
    places: list[int | str] = list(range(n_heads))
    if (frame["head"] < 0).any():
        places.append(_MLP)
    free = frame.loc[~frame[by].isin(unit_range), value]
    signed = bool((free[np.isfinite(free.astype(float))] < 0).any())
    size = (min(max(3.2, 1.6 + 0.24 * len(places)), 6.0), min(max(2.4, 1.3 + 0.16 * n_layers), 7.0))
    _, axes = panels(len(kinds), size=size, columns=_COLUMNS, title=title)
    for ax, kind in zip(axes, kinds, strict=True):
        of_kind = frame[frame[by] == kind]
        of_kind = of_kind.assign(head=of_kind["head"].where(of_kind["head"] >= 0, _MLP))
        table = of_kind.pivot(index="layer", columns="head", values=value).reindex(
            index=range(n_layers), columns=places
        )
        look = _scale(table.to_numpy(dtype=float), kind in unit_range, signed)
        look["cbar_kws"] = {"shrink": 0.7, "label": label}
        sns.heatmap(table.astype(float), ax=ax, **look)
        ax.invert_yaxis()
        ax.set(title=str(kind), xlabel="head", ylabel="layer")
        if _MLP in places:
            ax.axvline(n_heads, color="white", linewidth=2)
        ax.tick_params(labelsize=7)
    return axes


def _scale(values: np.ndarray, unit: bool, signed: bool) -> dict[str, Any]:
    finite = values[np.isfinite(values)]
    largest = float(np.abs(finite).max()) if len(finite) else 1.0
    if unit and not (len(finite) and finite.min() < 0):
        return {"cmap": SEQUENTIAL, "vmin": 0.0, "vmax": 1.0}
    if signed or unit:
        return {"cmap": SIGNED, "vmin": -(largest or 1.0), "vmax": largest or 1.0}
    return {"cmap": SEQUENTIAL, "vmin": 0.0, "vmax": largest or 1.0}
