"""Tables for the terminal."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lensprune.output.plain_text import for_terminal

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["aligned", "frame_json", "frame_rows", "heading", "metrics_report", "of_how_many"]

_HEADINGS = {"delta": "Δ", "ci_low": "95% from", "ci_high": "to", "p_value": "p", "q_value": "q"}


def aligned(rows: list[list[str]]) -> str:
    """Align cells in columns, made safe for a terminal."""
    safe = [[for_terminal(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in safe) for i in range(len(safe[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in safe
    )


def of_how_many(shown: int, total: int, what: str, where: str = "", *, kept: bool = True) -> str:
    """What a table leaves out, as a line below it: ``5 of 30 variants, largest losses first; summary.csv has all``;
    empty where it shows all.

    Args:
        what: is counted, and in which order it stands.
        where: all of them are.
        kept: whether that was written; if not, the line says how to have it written.
    """
    if shown >= total:
        return ""
    rest = f"; {where} has all" if kept else f"; --out FOLDER writes all to {where}"
    return f"{shown} of {total} {what}" + (rest if where else "")


def metrics_report(table: pd.DataFrame) -> str:
    """lm-eval's metrics, variant by variant, with the change against the clean model."""
    rows = [["variant", "task", "metric", "value", "clean", "change"]]
    for variant, task, metric, value, clean, delta in table.itertuples(index=False):
        rows.append([variant, task, metric, f"{value:.4f}", f"{clean:.4f}", f"{delta:+.4f}"])
    return aligned(rows)


def heading(column: str) -> str:
    """A column's heading in a table that is read: ``ci_low`` is ``95% from``, ``random_mean`` is ``random mean``."""
    return _HEADINGS.get(column, column.replace("_", " "))


def frame_rows(frame: pd.DataFrame, columns: Mapping[str, str]) -> str:
    """A frame as aligned text: the columns in `columns` with their number formats, or all if it is empty."""
    shown = columns or dict.fromkeys(map(str, frame.columns), "")
    rows = [[heading(name) for name in shown]]
    known = frame.astype(object).where(frame.notna(), None)
    for record in known.to_dict("records"):
        rows.append([_cell(record[name], form) for name, form in shown.items()])
    return aligned(rows)


def frame_json(frame: pd.DataFrame) -> str:
    """A frame as a JSON list, one object per row; missing values, and numbers that JSON lacks, are null."""
    rows = [{str(name): _json_value(value) for name, value in row.items()} for row in frame.to_dict("records")]
    return json.dumps(rows, indent=1, allow_nan=False)


def _json_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _json_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_value(item) for item in value]
    plain = value.item() if hasattr(value, "item") else value
    if isinstance(plain, float):
        return plain if math.isfinite(plain) else None
    if plain is None or type(plain).__name__ in ("NAType", "NaTType"):
        return None
    return plain if isinstance(plain, (bool, int, str)) else str(plain)


def _cell(value: Any, form: str) -> str:
    if value is None:
        return "-"
    return format(value, form or (".4g" if isinstance(value, float) else ""))
