"""What commands print, beside what they write."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pandas as pd


def check_json_of(printed: str, path: Path) -> None:
    """The JSON that is printed is the table in the CSV file, with all its rows and columns."""
    rows = json.loads(printed)
    written = pd.read_csv(path)
    assert len(written) > 0
    text = pd.DataFrame(rows, columns=list(rows[0])).to_csv(index=False)
    pd.testing.assert_frame_equal(pd.read_csv(io.StringIO(text)), written)
