"""How faithful circuits of more and more edges are."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from lensprune.errors import UserError
from lensprune.output.drawing.style import colours, panels

__all__ = ["faithfulness_figure"]


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
    ax.set(xlabel="share of edges kept", ylabel="faithfulness", xlim=(0, None))
    return ax
