"""Hostile text stays text."""

from __future__ import annotations

import csv
from pathlib import Path

import pandas as pd
import pytest

from lensprune.output.plain_text import escape_cell, for_terminal, write_csv


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_formulas_are_escaped(text: str) -> None:
    assert escape_cell(text) == "'" + text


@pytest.mark.parametrize("value", ["L0.skip", "", "a=b", -1.5, None, True])
def test_other_cells_stay(value: object) -> None:
    assert escape_cell(value) is value


def test_csv_escapes_text_and_leaves_numbers(tmp_path: Path) -> None:
    frame = pd.DataFrame({"text": ["=HYPERLINK(1)", 'two\n"lines"', None], "number": [-1.5, float("nan"), 2]})
    write_csv(frame, tmp_path / "t.csv")
    with open(tmp_path / "t.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows == [["text", "number"], ["'=HYPERLINK(1)", "-1.5"], ['two\n"lines"', ""], ["", "2.0"]]


def test_terminal_text_has_no_control_characters() -> None:
    assert for_terminal("a\x1b[31mred\x07\nb\u202ec\u2028d\x9b") == "a[31mred bc d"
