"""The noise stored in a run's spec: its table, and the change of accuracy that it can explain."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from lensprune.errors import UserError
from lensprune.output.plain_text import for_terminal
from lensprune.runs.spec import SweepSpec

__all__ = ["NOISE_COLUMNS", "NOISE_NOTE", "noise_floor", "noise_lines", "noise_table", "within_noise"]

NOISE_NOTE = "within noise"
NOISE_COLUMNS = ("task", "protocol", "way", "n", "lost", "won", "flipped", "items")
"""`way`: how the clean model was run again; `lost`, `won`: items that it then gets wrong and right, unlike in
the run; `flipped`: both, as a share of the `n` items; `items`: their ids. Where items have several samples, each text
counts instead."""


def noise_table(spec: SweepSpec) -> pd.DataFrame:
    """One row per (task, protocol, way), with the columns `NOISE_COLUMNS`; empty where the noise was not measured.

    Raises:
        UserError: the spec holds something else in its place.
    """
    try:
        rows = _rows(spec)
    except (KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise UserError(f"the noise in the run's spec can't be read: {type(error).__name__} {error}") from None
    return pd.DataFrame(rows, columns=list(NOISE_COLUMNS))


def _rows(spec: SweepSpec) -> list[dict[str, Any]]:
    items_of = {task.name: task.n_items for task in spec.tasks}
    sizes = {(c.task, c.protocol): c.samples * items_of[c.task] for c in spec.conditions}
    rows: list[dict[str, Any]] = []
    for task, of_task in spec.execution.noise.items():
        for protocol, ways in of_task.items():
            for way, flips in ways.items():
                items, n = [*flips["lost"], *flips["won"]], sizes[task, protocol]
                rows.append(
                    {
                        "task": task,
                        "protocol": protocol,
                        "way": way,
                        "n": n,
                        "lost": len(flips["lost"]),
                        "won": len(flips["won"]),
                        "flipped": len(items) / n,
                        "items": " ".join(items),
                    }
                )
    return rows


def noise_floor(spec: SweepSpec, task: str, protocol: str) -> float:
    """The largest share of items that flip in any way of running; NaN where the noise was not measured."""
    table = noise_table(spec)
    here = table[(table["task"] == task) & (table["protocol"] == protocol)]
    return float(here["flipped"].max()) if len(here) else np.nan


def within_noise(summary: pd.DataFrame) -> pd.Series[bool]:
    """Rows of a summary whose change of accuracy is within the noise floor; none if no item flips."""
    return (summary["noise"] > 0) & (summary["delta"].abs() <= summary["noise"]) & (summary["variant"] != "clean")


def noise_lines(spec: SweepSpec) -> list[str]:
    """One line per (task, protocol) whose noise was measured."""
    lines = []
    for (task, protocol), rows in noise_table(spec).groupby(["task", "protocol"], sort=False):
        ways = ", ".join(f"{way} {lost + won}" for way, lost, won in rows[["way", "lost", "won"]].to_numpy())
        floor = f"a Δμ up to {rows['flipped'].max():.3f} may be that alone" if rows["flipped"].any() else "none"
        lines.append(
            f"{for_terminal(str(task))}, {protocol}: of {rows['n'].iloc[0]} items the clean model in {spec.dtype} "
            f"answers differently: {ways}; {floor}"
        )
    return lines
