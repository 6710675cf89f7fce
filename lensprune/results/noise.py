"""What ``lensprune noise`` prints and writes."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from lensprune.output.tables import aligned, frame_json

__all__ = ["NOISE_FILE", "noise_report"]

NOISE_FILE = "noise.csv"


def noise_report(table: pd.DataFrame, out: str | Path | None = None, *, as_json: bool = False) -> str:
    """The table of `lensprune.noise`, and the Δμ up to which a change may be noise alone; with `out` also a file;
    `as_json`: the table as JSON."""
    rows = [["task", "protocol", "way", "n", "lost", "won", "flipped", "items"]]
    for row in table.itertuples(index=False):
        numbers = [str(row.n), str(row.lost), str(row.won), f"{row.flipped:.3f}"]
        rows.append([str(row.task), str(row.protocol), str(row.way), *numbers, str(row.items)])
    floors = [["task", "protocol", "Δμ within noise"]]
    for (task, protocol), group in table.groupby(["task", "protocol"], sort=False):
        floors.append([str(task), str(protocol), f"up to {group['flipped'].max():.3f}"])
    parts = ["items that the clean model answers differently, by how it is run", aligned(rows), aligned(floors)]
    if out is not None:
        from lensprune.output.results_folder import write_results

        [path] = write_results(Path(out), {NOISE_FILE: table}, {})
        parts.append(f"{'table:':10}{path}")
    return frame_json(table) if as_json else "\n\n".join(parts)
