"""Curves of accuracy against the number of heads removed or kept."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from lensprune.errors import UserError
from lensprune.output.drawing.style import colours, legend_below, panel_title, panels, short_tasks

__all__ = ["removal_data", "removal_figure"]


def removal_data(table: pd.DataFrame) -> pd.DataFrame:
    """What `removal_figure` draws: task, protocol, order, k, accuracy (mean of the random orders), low, high (range of
    the middle 95% of the random orders; for a single order, its accuracy), n_orders, accuracy_clean."""
    keys = ["task", "protocol", "order", "k"]
    grouped = table.groupby(keys, sort=False)
    data = grouped.agg(
        accuracy=("accuracy", "mean"), n_orders=("seed", "nunique"), accuracy_clean=("accuracy_clean", "first")
    )
    low, high = (grouped["accuracy"].quantile(share) for share in (0.025, 0.975))
    return data.assign(low=low, high=high).reset_index()


def removal_figure(table: pd.DataFrame, *, mode: str = "remove", title: str = "") -> list[Axes]:
    """Draw accuracy against k: one panel per (task, protocol), one line per order, random orders as their mean and the
    range of the middle 95%.

    Args:
        table: `RemovalCurves.table`.

    Raises:
        UserError: nothing to draw.
    """
    if table.empty:
        raise UserError("there are no curves to draw")
    data = removal_data(table)
    groups = list(data.groupby(["task", "protocol"], sort=False))
    _, axes = panels(len(groups), sharey=True, title=title)
    short = short_tasks(list(dict.fromkeys(str(task) for (task, _), _ in groups)))
    for ax, ((task, protocol), panel) in zip(axes, groups, strict=True):
        names = list(dict.fromkeys(panel["order"]))
        for i, (name, colour) in enumerate(zip(names, colours(len(names)), strict=True)):
            curve = panel[panel["order"] == name]
            label = name.replace("_", " ") + (f" ({curve['n_orders'].max()})" if name == "random" else "")
            ax.plot(curve["k"], curve["accuracy"], marker="os^Dv"[i % 5], markersize=4, color=colour, label=label)
            if name == "random":
                ax.fill_between(curve["k"], curve["low"], curve["high"], color=colour, alpha=0.15, linewidth=0)
        ax.axhline(panel["accuracy_clean"].iloc[0], color="0.5", linewidth=0.9, linestyle=":", label="clean")
        verb = "removed" if mode == "remove" else "kept"
        ax.set_title(panel_title(short[str(task)], str(protocol)), fontsize=10)
        ax.set(xlabel=f"heads {verb}", ylabel="accuracy")
    # Curves may reach any corner of a panel.
    legend_below(axes, axes[0].get_legend_handles_labels()[0])
    return axes
