"""The figure of QK attribution: what each writer adds to an attention score."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from lensprune.errors import UserError
from lensprune.output.drawing.style import colours, panels

__all__ = ["writers_data", "writers_figure"]

_SIDES = {"query": "written at the destination (query)", "key": "written at the source (key)"}


def writers_data(table: pd.DataFrame, most: int = 10) -> pd.DataFrame:
    """What `writers_figure` draws: the `most` largest relative contributions of each side, and a row ``others``."""
    parts = []
    for side in _SIDES:
        of_side = table[table["side"] == side]
        order = of_side["relative"].abs().sort_values(ascending=False, kind="stable").index
        parts.append(of_side.loc[order[:most]])
        rest = of_side.loc[order[most:]]
        if len(rest):
            parts.append(pd.DataFrame({"side": [side], "writer": ["others"], "relative": [rest["relative"].sum()]}))
    return pd.concat(parts, ignore_index=True)[["side", "writer", "relative", "standard_error"]]


def writers_figure(table: pd.DataFrame, *, most: int = 10, title: str = "") -> list[Axes]:
    """Draw the largest contributions to an attention score, one panel per side, each bar with ± 1 standard error, and
    the sum of all others.

    Args:
        table: from `lensprune.attribution.qk.mean_contributions`.
        most: writers per side.

    Raises:
        UserError: nothing to draw.
    """
    if table.empty:
        raise UserError("there are no contributions to draw")
    data = writers_data(table, most)
    _, axes = panels(2, size=(4.4, 1.2 + 0.24 * (most + 1)), sharex=True, title=title)
    for ax, (side, name), colour in zip(axes, _SIDES.items(), colours(2), strict=True):
        rows = data[data["side"] == side].iloc[::-1]
        looks = ["0.6" if writer == "others" else colour for writer in rows["writer"]]
        errors = rows["standard_error"].fillna(0)
        ax.barh(
            rows["writer"], rows["relative"], color=looks, xerr=errors, error_kw={"elinewidth": 0.9, "ecolor": "0.3"}
        )
        ax.axvline(0, color="0.25", linewidth=0.9)
        ax.set_title(name, fontsize=10)
        ax.set_xlabel("contribution to score − mean of other tokens", fontsize=9)
        ax.tick_params(axis="y", labelsize=8)
    return axes
