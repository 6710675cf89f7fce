"""What a run writes into its folder besides its records."""

from __future__ import annotations

from pathlib import Path

from lensprune.analysis.screening import screen_table
from lensprune.analysis.summary import summarise
from lensprune.errors import UserError
from lensprune.output.results_folder import SUMMARY_TABLE, write_results
from lensprune.results.analyses import shown_analyses
from lensprune.results.concentration import concentration_files
from lensprune.runs.outcomes import Outcomes

__all__ = ["SCREEN_TABLE", "save", "write_outputs"]

SCREEN_TABLE = "screen.csv"


def write_outputs(outcomes: Outcomes, folder: Path) -> list[Path]:
    """Write summary.csv, screen.csv of a screened sweep, concentration.csv and overlap.csv of a finished one over heads
    (see `lensprune.results.concentration`), and what analyses save (`Analysis.saved`), into `folder`.

    Returns:
        The files written.

    Raises:
        UserError: the disk is full or the folder can't be written to.
    """
    tables = {SUMMARY_TABLE: summarise(outcomes)}
    if outcomes.spec.screen is not None:
        tables[SCREEN_TABLE] = screen_table(outcomes)
    tables |= concentration_files(outcomes)
    draw = {}
    for analysis, table in shown_analyses(outcomes, saved=True):
        if analysis.columns:
            tables[f"{analysis.name}.csv"] = table
        if analysis.draw is not None:
            draw[analysis.name] = analysis.figure_of(table, outcomes.spec).draw
    return write_results(folder, tables, draw)


def save(outcomes: Outcomes, folder: str | Path | None = None) -> Path:
    """`write_outputs` into the run's folder; with another `folder` the run itself is first copied there.

    Raises:
        UserError: no folder, a folder that contains another run, or a disk that can't be written to.
    """
    target = outcomes.folder if folder is None else Path(folder)
    if target is None:
        raise UserError("this run is in memory: name the folder to save it in")
    if outcomes.folder is None or target.resolve() != outcomes.folder.resolve():
        outcomes.copy_to(target)
    write_outputs(outcomes, target)
    return target
