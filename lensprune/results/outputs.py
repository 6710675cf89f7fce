"""What a run leaves in its folder beside its records."""

from __future__ import annotations

from pathlib import Path

from lensprune.analysis.screening import screen_table
from lensprune.analysis.summary import summarise
from lensprune.errors import UserError
from lensprune.output.results_folder import SUMMARY_TABLE, write_results
from lensprune.results.concentration import concentration_files
from lensprune.results.figures.kinds import figures_of
from lensprune.runs.outcomes import Outcomes

__all__ = ["SAVED_FIGURES", "SCREEN_TABLE", "save", "write_outputs"]

SCREEN_TABLE = "screen.csv"
SAVED_FIGURES = ("depth", "heads")
"""Kinds of figure that are written into the folder, where the run has something for them."""


def write_outputs(outcomes: Outcomes, folder: Path) -> list[Path]:
    """Write summary.csv, screen.csv of a screened sweep, concentration.csv and overlap.csv of a finished one over heads
    (see `lensprune.results.concentration`), and `SAVED_FIGURES`, into `folder`.

    Returns:
        The files written.

    Raises:
        UserError: the disk is full or the folder can't be written to.
    """
    tables = {SUMMARY_TABLE: summarise(outcomes)}
    if outcomes.spec.screen is not None:
        tables[SCREEN_TABLE] = screen_table(outcomes)
    tables |= concentration_files(outcomes)
    return write_results(folder, tables, {figure.name: figure.draw for figure in figures_of(outcomes, SAVED_FIGURES)})


def save(outcomes: Outcomes, folder: str | Path | None = None) -> Path:
    """`write_outputs` into the run's folder; with another `folder` the run itself is first copied there.

    Raises:
        UserError: no folder, a folder that holds another run, or a disk that can't be written to.
    """
    target = outcomes.folder if folder is None else Path(folder)
    if target is None:
        raise UserError("this run is in memory: name the folder to save it in")
    if outcomes.folder is None or target.resolve() != outcomes.folder.resolve():
        outcomes.copy_to(target)
    write_outputs(outcomes, target)
    return target
