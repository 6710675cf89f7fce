"""The figure of circuits' faithfulness against their number of edges."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from lensprune.errors import UserError
from lensprune.output.drawing.style import colours, panels

__all__ = ["faithfulness_figure"]

_POWERS = [10.0**exponent for exponent in range(-6, 1)]


def faithfulness_figure(table: pd.DataFrame, *, title: str = "") -> Axes:
    """Draw faithfulness against the share of edges kept, on a logarithmic axis that begins with 0.

    Args:
        table: `FaithfulnessCurve.table`.

    Raises:
        UserError: no share above 0.
    """
    shares = table.loc[table["fraction"] > 0, "fraction"]
    if shares.empty:
        raise UserError("there are no circuits to draw")
    _, [ax] = panels(1, size=(5.2, 3.8), title=title)
    ax.plot(table["fraction"], table["faithfulness"], marker="o", markersize=4, color=colours(1)[0])
    ax.axhline(1, color="0.5", linestyle=":", linewidth=0.9)
    ax.set_xscale("symlog", linthresh=shares.min())
    # In plain text: matplotlib's labels for such an axis are math text.
    powers = [power for power in _POWERS if shares.min() <= power <= shares.max()]
    ax.xaxis.set_major_locator(FixedLocator([0.0, *(powers or [float(shares.max())])]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda share, place: f"{share:.3g}"))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set(xlabel="share of edges kept", ylabel="faithfulness", xlim=(0, None))
    ax.annotate(
        "whole model", (0, 1), xycoords=("axes fraction", "data"), xytext=(4, 3), textcoords="offset points",
        fontsize=7, color="0.4",
    )  # fmt: skip
    return ax
