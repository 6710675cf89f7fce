"""A figure as a value: its name, its text, how it is drawn and from which table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from lensprune.errors import UserError, nearest

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Figure", "drawn_axes", "unknown_kind"]


@dataclass(frozen=True)
class Figure:
    """A figure that can be drawn: `draw()` returns its axes, `data()` the tidy table that it draws."""

    name: str
    alt: str
    caption: str
    draw: Callable[[], Axes | list[Axes]]
    data: Callable[[], pd.DataFrame]


def drawn_axes(figure: Figure, ax: Axes | Sequence[Axes] | None = None) -> Axes | list[Axes]:
    """Draw a figure; returns one Axes, or a list if there are several panels.

    Args:
        ax: draw on these axes, one per panel; ``None`` makes a figure.

    Raises:
        UserError: the number of axes differs from the figure's number of panels.
    """
    from lensprune.output.drawing.style import drawing_on

    with drawing_on(ax):
        axes = figure.draw()
    return axes[0] if isinstance(axes, list) and len(axes) == 1 else axes


def unknown_kind(kind: str, kinds: Iterable[str], what: str = "kind of figure") -> UserError:
    """The error for a name of `what` that is none of `kinds`: it names the nearest and all of them."""
    close = nearest(kind, kinds, 1)
    hint = f"did you mean {close[0]}? " if close else ""
    return UserError(f"unknown {what} {kind!r}: {hint}choose one of {', '.join(kinds)}")
