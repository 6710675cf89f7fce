"""Make text from models and data safe for a terminal and for a spreadsheet."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, overload

from lensprune.output.files import write_atomically

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "csv_text",
    "escape_cell",
    "for_terminal",
    "in_ranges",
    "visible",
    "visible_end",
    "write_csv",
    "write_csv_parts",
]

_HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")


def for_terminal(text: str) -> str:
    """`text` in one line without control, format or surrogate characters, so that it can't control a terminal."""
    spaced = " ".join(text.split())
    return "".join(c for c in spaced if c == " " or unicodedata.category(c) not in _HIDDEN)


def in_ranges(numbers: Iterable[int]) -> str:
    """``0–1, 5, 16–18``."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)


@overload
def visible(text: str, limit: int | None = None) -> str: ...
@overload
def visible(text: None, limit: int | None = None) -> None: ...
@overload
def visible(text: str | None, limit: int | None = None) -> str | None: ...
def visible(text: str | None, limit: int | None = None) -> str | None:
    """`text` with control, format and surrogate characters written out as escapes, line breaks and tabs kept.

    So a right-to-left override is visible and does not reverse the text. Above `limit` characters the text is cut
    and the number of characters left out is added.
    """
    if text is None:
        return None
    cut = len(text) - limit if limit is not None and len(text) > limit else 0
    kept = text[:limit] if cut else text
    shown = "".join(c if c in "\n\t" or unicodedata.category(c) not in _HIDDEN else _escape(c) for c in kept)
    return f"{shown} … (+{cut} characters)" if cut else shown


def visible_end(text: str, limit: int) -> str:
    """The last `limit` characters of `text`, as `visible`, after the number of characters left out."""
    cut = len(text) - limit
    return visible(text) if cut <= 0 else f"(+{cut} characters) … {visible(text[-limit:])}"


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def escape_cell(value: object) -> object:
    """Prefix a string that a spreadsheet would run as a formula with ``'``; anything else is unchanged."""
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return "'" + value
    return value


def _escaped(frame: pd.DataFrame) -> pd.DataFrame:
    text_columns = frame.select_dtypes(include=["object", "string"]).columns
    escaped = frame.assign(**{name: frame[name].map(escape_cell, na_action="ignore") for name in text_columns})
    escaped.columns = [str(escape_cell(str(name))) for name in escaped.columns]
    return escaped


def csv_text(frame: pd.DataFrame) -> str:
    """`frame` as CSV, with formulas in text cells escaped."""
    return _escaped(frame).to_csv(index=False)


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """Write `frame` as UTF-8 CSV, whole or not at all, with formulas in text cells escaped."""
    write_csv_parts([frame], path)


def write_csv_parts(frames: Iterable[pd.DataFrame], path: Path) -> None:
    """Write frames of the same columns below each other as one CSV, one at a time in memory; see `write_csv`."""

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            for i, frame in enumerate(frames):
                _escaped(frame).to_csv(file, index=False, header=i == 0)

    write_atomically(path, write)
