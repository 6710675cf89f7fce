"""Maps of layers × heads, one panel per quantity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import Colormap

from lensprune.errors import UserError
from lensprune.output.drawing.style import SEQUENTIAL, SIGNED, panels

__all__ = ["colour_cells", "head_heatmaps", "label_places"]

_COLUMNS = 4
_LABELS = 10
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
    """Draw one map of layers (upwards) × heads for each kind of row. Layers and heads without a row are left out.

    Args:
        frame: columns layer, head, `by` and `value`, as `head_scores` gives them. Rows whose head is missing are
            of the layer's MLP, which gets a column of its own on the right.
        by: column that tells the panels apart.
        unit_range: kinds that are drawn on a scale from 0 to 1. Others take the range of their values: from 0 where
            none is negative, else symmetric about 0.
        label: what the values are, with their unit, beside the colours. With one, all panels show the same quantity,
            and where any panel has negative values all scales are symmetric.

    Returns:
        One Axes per panel, all of one figure.

    Raises:
        UserError: nothing to draw.
    """
    kinds = list(dict.fromkeys(frame[by]))
    if not kinds:
        raise UserError("there are no head values to draw")
    frame = frame.assign(head=frame["head"].fillna(-1).astype(int))
    layers, heads = sorted(set(frame["layer"].astype(int))), sorted(set(frame.loc[frame["head"] >= 0, "head"]))
    places: list[int | str] = [*heads]
    if (frame["head"] < 0).any():
        places.append(_MLP)
    signed = bool(label) and bool((frame[value].astype(float) < 0).any())
    size = (min(max(3.2, 1.6 + 0.24 * len(places)), 6.0), min(max(2.4, 1.3 + 0.16 * len(layers)), 7.0))
    _, axes = panels(len(kinds), size=size, columns=_COLUMNS, title=title)
    for ax, kind in zip(axes, kinds, strict=True):
        of_kind = frame[frame[by] == kind]
        of_kind = of_kind.assign(head=of_kind["head"].where(of_kind["head"] >= 0, _MLP))
        table = of_kind.pivot(index="layer", columns="head", values=value).reindex(index=layers, columns=places)
        look = _scale(table.to_numpy(dtype=float), kind in unit_range, signed)
        colour_cells(ax, table, label=label, shrink=0.7, **look)
        ax.set(title=str(kind), xlabel="head", ylabel="layer")
        if _MLP in places:
            ax.axvline(len(heads), color="white", linewidth=2)
        label_places(ax.xaxis, [str(place) for place in places])
        label_places(ax.yaxis, [str(layer) for layer in layers])
        ax.tick_params(labelsize=7)
    return axes


def colour_cells(
    ax: Axes, table: pd.DataFrame, *, label: str, cmap: str | Colormap, vmin: float, vmax: float, shrink: float = 0.8
) -> None:
    """Colour the cells of a table, whose first row is the lowest, and add a bar of the colours; NaN stays blank.

    `seaborn.heatmap` draws the whole figure once per panel, to see whether labels overlap: with thirteen panels,
    that takes most of the time of a figure.

    Args:
        label: what the values are, beside the bar, which is `shrink` times as high as the map.
        cmap, vmin, vmax: as for `Axes.pcolormesh`.
    """
    mesh = ax.pcolormesh(np.ma.masked_invalid(table.to_numpy(dtype=float)), cmap=cmap, vmin=vmin, vmax=vmax)
    ax.set(xlim=(0, table.shape[1]), ylim=(0, table.shape[0]))
    sns.despine(ax=ax, left=True, bottom=True)
    bar = ax.figure.colorbar(mesh, ax=ax, label=label, shrink=shrink)
    bar.outline.set_linewidth(0)


def label_places(axis: Axis, names: Sequence[str]) -> None:
    """Name the rows or columns of a heatmap, at most about ten of them and the last one where it is a word."""
    shown = list(range(0, len(names), -(-len(names) // _LABELS)))
    if not names[-1].isdecimal():
        shown = [place for place in shown if place < len(names) - 2] + [len(names) - 1]
    axis.set_ticks([place + 0.5 for place in shown], [names[place] for place in shown], rotation=0)


def _scale(values: np.ndarray, unit: bool, signed: bool) -> dict[str, Any]:
    finite = values[np.isfinite(values)]
    largest = float(np.abs(finite).max()) if len(finite) else 1.0
    signed = signed or (bool(len(finite)) and float(finite.min()) < 0)
    if unit and not signed:
        return {"cmap": SEQUENTIAL, "vmin": 0.0, "vmax": 1.0}
    if signed:
        return {"cmap": SIGNED, "vmin": -(largest or 1.0), "vmax": largest or 1.0}
    return {"cmap": SEQUENTIAL, "vmin": 0.0, "vmax": largest or 1.0}
