"""What a finished run leaves beside its records: summary.csv and figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from lensprune.report.delta_by_depth import delta_by_depth, drawable
from lensprune.report.plain_text import write_csv
from lensprune.sweep.files import write_atomically, write_error

__all__ = ["DELTA_FIGURE", "SCREEN_TABLE", "write_outputs"]

SCREEN_TABLE = "screen.csv"
DELTA_FIGURE = Path("figures") / "delta_by_depth.png"


def write_outputs(
    folder: Path,
    summary: pd.DataFrame,
    *,
    n_layers: int,
    title: str = "",
    screen: pd.DataFrame | None = None,
    others: Mapping[str, pd.DataFrame] | None = None,
) -> list[Path]:
    """Write summary.csv, screen.csv of a screened sweep, other tables by the names of their files, and
    figures/delta_by_depth.png where there is a depth to draw.

    Returns:
        The files written.

    Raises:
        UserError: the disk is full or the folder can't be written to.
    """
    written = [folder / "summary.csv"]
    try:
        write_csv(summary, written[0])
        if screen is not None:
            written.append(folder / SCREEN_TABLE)
            write_csv(screen, written[-1])
        for name, table in (others or {}).items():
            written.append(folder / name)
            write_csv(table, written[-1])
        if drawable(summary):
            path = folder / DELTA_FIGURE
            path.parent.mkdir(exist_ok=True)
            axes = delta_by_depth(summary, n_layers=n_layers, title=title)
            figure = cast(Figure, axes[0].figure)
            try:
                write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=150, format="png"))
            finally:
                plt.close(figure)
            written.append(path)
    except OSError as error:
        raise write_error(error, folder) from None
    return written
