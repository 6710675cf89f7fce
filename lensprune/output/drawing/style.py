"""The style of all figures: a colour-blind-safe palette, a marker per colour, and panels."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text

from lensprune.errors import UserError

__all__ = [
    "GREY",
    "MARKERS",
    "SEQUENTIAL",
    "SIGNED",
    "colours",
    "drawing_on",
    "legend_below",
    "name_points",
    "panel_title",
    "panels",
    "settings",
    "short_tasks",
]

MARKERS = "os^Dv<>P*X"
"""Markers distinguish lines in greyscale, so colour is never the only cue."""
GREY = "0.55"
SIGNED = "vlag"
SEQUENTIAL = "rocket_r"
_STYLE = {"axes.spines.top": False, "axes.spines.right": False}
# Names of tasks and tokens may contain $, which would be read as math.
_TEXT = {"text.parse_math": False}
_WIDEST = 20.0


@dataclass
class _Given:
    """User-provided axes that the next figure is drawn on."""

    axes: list[Axes]
    used: bool = False


_GIVEN: ContextVar[_Given | None] = ContextVar("given", default=None)


@contextmanager
def drawing_on(axes: Axes | Sequence[Axes] | None) -> Iterator[None]:
    """Draw the figure of this block on `axes`, one per panel; ``None``: make a new figure.

    Raises:
        UserError: another number of axes than the figure has panels, or a figure that is not drawn by `panels`.
    """
    if axes is None:
        yield
        return
    given = _Given([axes] if isinstance(axes, Axes) else [ax for ax in np.ravel(np.asarray(axes, dtype=object))])
    wrong = next((ax for ax in given.axes if not isinstance(ax, Axes)), None)
    if wrong is not None or not given.axes:
        raise UserError(f"ax is {axes!r}: expected a matplotlib Axes, or a list with one per panel")
    token = _GIVEN.set(given)
    try:
        with settings(_TEXT):
            yield
    finally:
        _GIVEN.reset(token)
    if not given.used:
        raise UserError("this figure makes its own axes and can't be drawn on given ones: leave ax out")


@contextmanager
def settings(values: Mapping[str, Any]) -> Iterator[None]:
    """Set some of matplotlib's rcParams for a block, and restore only those.

    `matplotlib.rc_context` restores all of them: a backend that loads inside it, as on the first figure of a notebook,
    loses its own settings, including interactivity, and later figures don't appear.
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


def short_tasks(names: Sequence[str]) -> dict[str, str]:
    """Each task's name without the parameters that don't tell it from the others of the figure."""
    parts = {name: name.removesuffix("]").partition("[")[::2] for name in names}
    settings_of = {name: dict.fromkeys(given.split(",")) if given else {} for name, (_, given) in parts.items()}
    short = {}
    for name, (base, _) in parts.items():
        others = [settings_of[other] for other in names if other != name and parts[other][0] == base]
        differing = [one for one in settings_of[name] if not others or not all(one in other for other in others)]
        short[name] = f"{base}[{','.join(differing)}]" if others and differing else base
    return short


def panels(
    n: int,
    *,
    size: tuple[float, float] = (4.6, 3.8),
    columns: int | None = None,
    sharex: bool = False,
    sharey: bool = False,
    title: str = "",
) -> tuple[Figure, list[Axes]]:
    """A figure of `n` panels in rows of `columns` (default: one row), each `size` inches; or the axes of `drawing_on`,
    which keep their figure's size and title.

    Returns:
        The figure and its `n` axes; places left over in the last row are blank.

    Raises:
        UserError: another number of axes is given.
    """
    given = _GIVEN.get()
    if given is not None:
        return _given_panels(given, n)
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


def _given_panels(given: _Given, n: int) -> tuple[Figure, list[Axes]]:
    if n != len(given.axes):
        drawn, had = (f"{count} panel{'' if count == 1 else 's'}" for count in (n, len(given.axes)))
        raise UserError(
            f"the figure has {drawn}, and ax is for {had}: name a task and a protocol, or give one Axes per panel"
        )
    given.used = True
    for ax in given.axes:
        ax.spines[["top", "right"]].set_visible(False)
    figure = given.axes[0].get_figure(root=True)
    assert figure is not None
    return figure, given.axes


def legend_below(axes: Sequence[Axes], handles: Sequence[Any], *, columns: int = 4) -> None:
    """One legend for all `axes`, where no data can be: below the figure, on axes of the user's own below the first."""
    look: dict[str, Any] = {"handles": list(handles), "fontsize": 8, "frameon": False}
    if not look["handles"]:
        return
    if _GIVEN.get() is not None:
        legend = axes[0].legend(**look, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=min(2, columns))
    else:
        figure: Any = axes[0].figure
        legend = figure.legend(**look, loc="outside lower center", ncols=columns)
        while legend.get_window_extent().width > figure.bbox.width and columns > 1:
            legend.remove()
            columns -= 1
            legend = figure.legend(**look, loc="outside lower center", ncols=columns)
    for text in legend.get_texts():
        text.set_parse_math(False)


_OFFSETS = (
    *((5, 3), (5, -9), (-5, 3), (-5, -9), (0, 8), (0, -14)),
    *((side * 8, up) for up in (14, -20, 25, -31, 36, -42) for side in (1, -1)),
)
"""Points to the right and upwards from a point, where its name may stand; the first that is free is taken."""


def name_points(
    ax: Axes, names: Sequence[str], x: Iterable[float], y: Iterable[float], points: tuple[Iterable[float], ...] = ()
) -> None:
    """Write names next to points, without overlapping other names, covering few points, and inside the axes.

    Call this last: titles and legends move the axes.

    Args:
        points: x and y of all points that a name may cover.
    """
    if not names:
        return
    ax.get_figure(root=True).draw_without_rendering()  # type: ignore[union-attr]
    inside = ax.get_window_extent()
    covered = ax.transData.transform(np.column_stack([np.asarray(list(axis), float) for axis in points or (x, y)]))
    taken: list[Any] = []
    for name, at_x, at_y in zip(names, x, y, strict=True):
        written = ax.annotate(
            name, (at_x, at_y), xytext=_OFFSETS[0], textcoords="offset points", fontsize=7, parse_math=False,
            arrowprops={"arrowstyle": "-", "color": "0.6", "linewidth": 0.5, "shrinkA": 0, "shrinkB": 3},
        )  # fmt: skip

        def cost(offset: tuple[int, int], written: Annotation = written) -> tuple[int, int]:
            written.set_position(offset)
            written.set_horizontalalignment("left" if offset[0] > 0 else "right" if offset[0] < 0 else "center")
            box = _text_box(written)
            outside = not (inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1)
            return sum(bool(box.overlaps(other)) for other in taken) + outside, int(box.count_contains(covered))

        cost(min(_OFFSETS, key=cost))
        taken.append(_text_box(written))


def _text_box(written: Annotation) -> Any:
    """Where the text of an annotation stands, without its line."""
    # Moves the text to where it was put.
    written.get_window_extent()
    return Text.get_window_extent(written)
