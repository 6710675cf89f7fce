"""Text from models and data made safe for a terminal and for a spreadsheet."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pandas as pd

from lensprune.sweep.files import write_atomically

__all__ = ["escape_cell", "for_terminal", "write_csv"]


def for_terminal(text: str) -> str:
    """`text` in one line without control, format or surrogate characters, so that it can't steer a terminal."""
    spaced = " ".join(text.split())
    return "".join(c for c in spaced if c == " " or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp"))


def escape_cell(value: object) -> object:
    """A string that a spreadsheet would run as a formula gets a ``'`` in front; anything else stays as it is."""
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return "'" + value
    return value


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """Write `frame` as UTF-8 CSV, whole or not at all, with formulas in text cells escaped."""
    text_columns = frame.select_dtypes(include=["object", "string"]).columns
    escaped = frame.assign(**{name: frame[name].map(escape_cell, na_action="ignore") for name in text_columns})
    escaped.columns = pd.Index([str(escape_cell(str(name))) for name in escaped.columns])
    write_atomically(path, lambda temporary: escaped.to_csv(temporary, index=False, encoding="utf-8"))
