"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lensprune.output.plain_text import for_terminal

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["aligned", "frame_rows", "metrics_report"]


def aligned(rows: list[list[str]]) -> str:
    """Cells in columns, made safe for a terminal."""
    safe = [[for_terminal(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in safe) for i in range(len(safe[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in safe
    )


def metrics_report(table: pd.DataFrame) -> str:
    """lm-eval's metrics, variant by variant, with the change against the clean model."""
    rows = [["variant", "task", "metric", "value", "clean", "change"]]
    for variant, task, metric, value, clean, delta in table.itertuples(index=False):
        rows.append([variant, task, metric, f"{value:.4f}", f"{clean:.4f}", f"{delta:+.4f}"])
    return aligned(rows)


def frame_rows(frame: pd.DataFrame, columns: Mapping[str, str]) -> str:
    """A frame in columns, those of `columns` with the format of their numbers; all of them where it is empty."""
    shown = columns or dict.fromkeys(map(str, frame.columns), "")
    rows = [[name.replace("_", " ") for name in shown]]
    known = frame.astype(object).where(frame.notna(), None)
    for record in known.to_dict("records"):
        rows.append([_cell(record[name], form) for name, form in shown.items()])
    return aligned(rows)


def _cell(value: Any, form: str) -> str:
    if value is None:
        return "-"
    return format(value, form or (".4g" if isinstance(value, float) else ""))
