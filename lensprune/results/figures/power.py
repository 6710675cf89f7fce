"""The smallest loss that a sweep detects, against the number of items."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator, ScalarFormatter

from lensprune.errors import UserError
from lensprune.output.drawing.style import panels

__all__ = ["smallest_losses"]


def smallest_losses(table: pd.DataFrame, *, title: str = "") -> Axes:
    """Draw `smallest_loss` against `n`, both axes logarithmic. The data is `table` itself.

    Args:
        table: from `lensprune.analysis.power.power_table`.

    Raises:
        UserError: no loss can be detected with any of the numbers of items.
    """
    known = table.dropna(subset=["smallest_loss"])
    if known.empty:
        raise UserError("there is nothing to draw: with so few items no loss can be detected")
    _, [ax] = panels(1, size=(5.2, 3.8), columns=1, title=title)
    ax.plot(known["n"], known["smallest_loss"], color="black", marker="o", markersize=4)
    ax.set(xscale="log", yscale="log", xlabel="items", ylabel="smallest loss detected in 80% of sweeps")
    for axis, values in ((ax.xaxis, known["n"]), (ax.yaxis, known["smallest_loss"])):
        axis.set_major_formatter(ScalarFormatter())
        axis.set_minor_locator(NullLocator())
        axis.set_ticks(sorted(set(values)))
    ax.grid(alpha=0.35)
    return ax
