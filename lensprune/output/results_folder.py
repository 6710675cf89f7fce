"""Writing a command's results: tables and figures into one folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import cast

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lensprune.output.files import write_atomically, write_error
from lensprune.output.plain_text import write_csv

__all__ = ["FIGURES", "SUMMARY_TABLE", "write_results"]

FIGURES = "figures"
"""Folder of figures within a folder of results."""

SUMMARY_TABLE = "summary.csv"

_DPI = 150


def write_results(
    folder: Path, tables: Mapping[str, pd.DataFrame], draw: Mapping[str, Callable[[], Axes | list[Axes]]]
) -> list[Path]:
    """Write tables by the names of their files, and ``figures/NAME.png``; returns the files.

    Args:
        draw: by name, what draws a figure and returns its axes; each figure is closed before the next is drawn.

    Raises:
        UserError: the disk is full or the folder can't be written to.
    """
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, table in tables.items():
            written.append(folder / name)
            write_csv(table, written[-1])
        for name, drawn in draw.items():
            written.append(folder / FIGURES / f"{name}.png")
            written[-1].parent.mkdir(exist_ok=True)
            axes = drawn()
            figure = cast(Figure, (axes[0] if isinstance(axes, list) else axes).figure)
            try:
                write_atomically(written[-1], partial(figure.savefig, dpi=_DPI, format="png"))
            finally:
                plt.close(figure)
    except OSError as error:
        raise write_error(error, folder) from None
    return written
