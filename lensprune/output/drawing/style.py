"""The look of every figure: colours that the colour-blind can tell apart, a marker for each, and panels."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = [
    "GREY",
    "MARKERS",
    "SEQUENTIAL",
    "SIGNED",
    "colours",
    "panel_title",
    "panels",
    "settings",
]

MARKERS = "os^Dv<>P*X"
"""Colour never stands alone: in grey print the markers tell lines apart."""
GREY = "0.55"
SIGNED = "vlag"
SEQUENTIAL = "rocket_r"
_STYLE = {"axes.spines.top": False, "axes.spines.right": False}
# Names of tasks and tokens may hold $, which would be read as mathematics.
_TEXT = {"text.parse_math": False}
_WIDEST = 20.0


@contextmanager
def settings(values: Mapping[str, Any]) -> Iterator[None]:
    """Set some of matplotlib's rcParams for a block, and put back those alone.

    `matplotlib.rc_context` puts back all of them: a backend that loads inside it, as on the first figure of a
    notebook, loses what it set itself, interactivity included, and no figure appears from then on.
    """
    # Typed by a literal of every parameter's name.
    parameters: Any = matplotlib.rcParams
    before = {name: parameters[name] for name in values}
    parameters.update(values)
    try:
        yield
    finally:
        parameters.update(before)


def colours(n: int) -> list[Any]:
    """`n` colours of seaborn's colour-blind palette (Wong 2011); above ten, of one with even steps of brightness."""
    most = len(sns.color_palette("colorblind"))
    return list(sns.color_palette("colorblind", n) if n <= most else sns.color_palette("viridis", n))


def panel_title(task: str, *others: str, width: int = 34) -> str:
    """The title of a panel: the task's name, broken between its parameters where it is long, then `others` below it."""
    lines = [""]
    for piece in task.replace("[", "[\0").replace(",", ",\0").split("\0"):
        if lines[-1] and len(lines[-1]) + len(piece) > width:
            lines.append("")
        lines[-1] += piece
    return "\n".join([*lines, ", ".join(others)] if others else lines)


def panels(
    n: int,
    *,
    size: tuple[float, float] = (4.6, 3.8),
    columns: int | None = None,
    sharex: bool = False,
    sharey: bool = False,
    title: str = "",
) -> tuple[Figure, list[Axes]]:
    """A figure of `n` panels in rows of `columns` (default: one row), each `size` inches.

    Returns:
        The figure and its `n` axes; places left over in the last row are blank.
    """
    across = min(columns or n, n)
    down = -(-n // across)
    with sns.axes_style("ticks", rc=_STYLE), settings(_TEXT):
        figure, grid = plt.subplots(
            down,
            across,
            figsize=(min(size[0] * across, _WIDEST), size[1] * down),
            squeeze=False,
            sharex=sharex,
            sharey=sharey,
            layout="constrained",
        )
    axes: Sequence[Axes] = list(grid.ravel())
    for ax in axes[n:]:
        ax.set_axis_off()
    if title:
        # Eleven letters of this size an inch; a narrow figure would cut a long title off.
        figure.suptitle(textwrap.fill(title, max(20, int(11 * figure.get_figwidth()))), fontsize=11)
    return figure, list(axes[:n])
