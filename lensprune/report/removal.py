"""Curves of accuracy against the number of heads removed or kept."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from lensprune.errors import UserError

__all__ = ["removal_figure"]


def removal_figure(table: pd.DataFrame, *, mode: str = "remove", title: str = "") -> list[Axes]:
    """Draw accuracy against k: one panel a (task, protocol), one line an order, random orders as their mean and the
    range of the middle 95%.

    Args:
        table: `RemovalCurves.table`.

    Raises:
        UserError: nothing to draw.
    """
    panels = list(table.groupby(["task", "protocol"], sort=False))
    if not panels:
        raise UserError("there are no curves to draw")
    with sns.axes_style("ticks", rc={"axes.spines.top": False, "axes.spines.right": False}):
        _, grid = plt.subplots(
            1, len(panels), figsize=(4.6 * len(panels), 3.8), squeeze=False, sharey=True, layout="constrained"
        )
    for ax, ((task, protocol), own) in zip(grid[0], panels, strict=True):
        names = list(dict.fromkeys(own["order"]))
        for name, colour in zip(names, sns.color_palette("colorblind", len(names)), strict=True):
            curve = own[own["order"] == name].groupby("k")["accuracy"]
            middle = curve.mean()
            label = name.replace("_", " ") + (f" ({own['seed'].max() + 1})" if name == "random" else "")
            ax.plot(middle.index, middle.to_numpy(), marker="o", markersize=3.5, color=colour, label=label)
            if name == "random":
                band = curve.quantile([0.025, 0.975]).unstack()
                ax.fill_between(band.index, band[0.025], band[0.975], color=colour, alpha=0.15, linewidth=0)
        ax.axhline(own["accuracy_clean"].iloc[0], color="0.5", linewidth=0.9, linestyle=":", label="clean")
        verb = "removed" if mode == "remove" else "kept"
        ax.set(title=f"{task}, {protocol}", xlabel=f"heads {verb}", ylabel="accuracy")
        ax.legend(fontsize=8, frameon=False)
    if title:
        grid[0][0].figure.suptitle(title, fontsize=11)
    return list(grid[0])
