"""What ``lensprune power`` prints and writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lensprune.analysis.power import FLIPS, power_table
from lensprune.errors import UserError
from lensprune.output.plain_text import for_terminal
from lensprune.output.tables import aligned, frame_json
from lensprune.tasks import load_task

__all__ = ["ITEMS", "power_report"]

ITEMS = (12, 24, 50, 100, 200, 500, 1000)
"""Numbers of items where none are given."""


def power_report(
    parts: int,
    items: Sequence[int] | None = None,
    *,
    task: str | None = None,
    data_dir: str | Path | None = None,
    clusters: int | None = None,
    flips: float = FLIPS,
    out: str | None = None,
    as_json: bool = False,
) -> str:
    """The smallest loss that is detected in 80% of sweeps, as a table; with `out` also files
    (``power.csv``, ``figures/power.png``).

    Args:
        parts: variants that are tested together: layers or heads of the sweep.
        items: numbers of items; ``None`` takes `ITEMS`, up to the task's own number.
        task: its items say how many clusters there are.
        clusters: number of clusters, instead of the task's own.
        flips: share of items that an unimportant part changes.
        as_json: the table alone, as JSON.

    Raises:
        UserError: a number out of range, more items than the task has, or a task that can't be loaded.
    """
    wanted = tuple(items or ITEMS)
    counted = None if clusters is None else [min(clusters, n) for n in wanted]
    name = "independent items" if clusters is None else f"{clusters} clusters"
    if task is not None:
        folder = None if data_dir is None else Path(data_dir)
        loaded = load_task(task, data_dir=folder)
        there = len(loaded.items)
        if items and max(items) > there:
            raise UserError(f"{max(items)} items are more than the {there} of task {task!r}")
        wanted = tuple(n for n in wanted if n <= there) or (there,)
        of_items = [item.cluster for item in loaded.items]
        name = f"{task}, {there} items"
        if clusters is None and all(of_items):
            # A limit of a task by clusters counts in each.
            counted = [
                min(n, len(set(of_items)))
                if loaded.task.by_cluster
                else len({item.cluster for item in load_task(task, data_dir=folder, limit=n).items})
                for n in wanted
            ]
    table = power_table(wanted, parts, flips=flips, clusters_of=counted)
    rows = [["items", "clusters", "smallest loss"]]
    for n, n_clusters, loss in table[["n", "n_clusters", "smallest_loss"]].itertuples(index=False):
        smallest = "none" if np.isnan(loss) else f"{loss:.2f}"
        rows.append([str(n), str(n_clusters) if counted is not None else "–", smallest])
    head = (
        f"{for_terminal(name)}: smallest loss of accuracy that is detected (q of a loss ≤ 0.05) in 80% of sweeps over "
        f"{parts} variant{'' if parts == 1 else 's'}, each of which also changes {flips:.0%} of the items at random"
    )
    text = frame_json(table) if as_json else f"{head}\n{aligned(rows)}"
    if out is None:
        return text
    from lensprune.output.results_folder import write_results
    from lensprune.results.figures.power import smallest_losses

    written = write_results(Path(out), {"power.csv": table}, {"power": lambda: smallest_losses(table, title=name)})
    if as_json:
        return text
    return "\n".join(
        [text, "", *(f"{what + ':':10}{path}" for what, path in zip(("table", "figure"), written, strict=True))]
    )
