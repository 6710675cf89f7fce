"""List the runs below a folder, with what each measured and its progress."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from lensprune.analysis.decisions import unfinished
from lensprune.errors import UserError
from lensprune.paths import usable_path
from lensprune.runs.folder import SPEC_FILE
from lensprune.runs.outcomes import Outcomes

__all__ = ["RUN_COLUMNS", "runs_in"]

RUN_COLUMNS = ("folder", "model", "tasks", "protocols", "n", "variants", "state")
_DEEPEST = 4


def runs_in(folder: str | Path) -> pd.DataFrame:
    """One row per run in `folder` and below it, with the columns `RUN_COLUMNS`, by name.

    `n`: items of each task; `variants`: changed models; `state`: ``finished``, how many cells of how many (in a
    sweep that stops early: variants that are decided), or why the run can't be read.

    Raises:
        UserError: no such folder, or none of a run in it.
    """
    path = usable_path(folder, "folder")
    if not path.is_dir():
        raise UserError(f"{folder} is not a folder: expected one that holds runs, like runs")
    rows = [_row(run_folder, path) for run_folder in sorted(_run_folders(path))]
    if not rows:
        raise UserError(f"{folder} contains no run: expected a folder, or folders in it, with {SPEC_FILE}")
    return pd.DataFrame(rows, columns=list(RUN_COLUMNS)).astype({"variants": "Int64"})


def _run_folders(path: Path) -> Iterator[Path]:
    for place, inner, files in os.walk(path):
        if SPEC_FILE in files:
            yield Path(place)
            # A run's own folders hold no runs.
            inner.clear()
        elif len(Path(place).relative_to(path).parts) >= _DEEPEST:
            inner.clear()


def _row(folder: Path, root: Path) -> tuple[object, ...]:
    name = str(folder.relative_to(root)) if folder != root else folder.name
    try:
        outcomes = Outcomes.load(folder)
        state = unfinished(outcomes)
    except UserError as error:
        return (name, "", "", "", "", None, str(error))
    spec = outcomes.spec
    return (
        name,
        spec.model,
        ", ".join(task.name for task in spec.tasks),
        ", ".join(spec.protocols),
        ", ".join(str(task.n_items) for task in spec.tasks),
        len(spec.variants) - 1,
        state or "finished",
    )
