"""Tables for the terminal."""

from __future__ import annotations

import pandas as pd

from lensprune.output.plain_text import for_terminal

__all__ = ["aligned", "metrics_report"]


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
