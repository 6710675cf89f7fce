"""Tables for the terminal."""

from __future__ import annotations

import pandas as pd

from lensprune.report.text.plain_text import for_terminal

__all__ = ["aligned", "metrics_report", "tasks_table"]


def aligned(rows: list[list[str]]) -> str:
    """Cells in columns, made safe for a terminal."""
    safe = [[for_terminal(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in safe) for i in range(len(safe[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in safe
    )


def tasks_table() -> str:
    """One line a task: name, protocols, parameters with their defaults, and what it is."""
    from lensprune.protocols.registry import protocols_of
    from lensprune.tasks import get_task, task_names

    rows = [["task", "protocols", "parameters", "what it is"]]
    for name in task_names():
        task = get_task(name)
        parameters = ", ".join(f"{key}={value}" for key, value in task.parameters.items())
        rows.append([name, ", ".join(protocols_of(task)), parameters or "-", task.summary])
    return aligned(rows)


def metrics_report(table: pd.DataFrame) -> str:
    """lm-eval's metrics, variant by variant, with the change against the clean model."""
    rows = [["variant", "task", "metric", "value", "clean", "change"]]
    for variant, task, metric, value, clean, delta in table.itertuples(index=False):
        rows.append([variant, task, metric, f"{value:.4f}", f"{clean:.4f}", f"{delta:+.4f}"])
    return aligned(rows)
