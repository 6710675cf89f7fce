"""What a weight replacement writes into its folder besides its records."""

from __future__ import annotations

from pathlib import Path

from lensprune.analysis.summary import summarise
from lensprune.output.results_folder import SUMMARY_TABLE, write_results
from lensprune.replacement.figure_kinds import replacement_figures
from lensprune.replacement.outcomes import ReplacementOutcomes
from lensprune.replacement.shares import gain_shares

__all__ = ["SHARES_TABLE", "write_delta_outputs"]

SHARES_TABLE = "replacement.csv"


def write_delta_outputs(outcomes: ReplacementOutcomes, folder: Path) -> list[Path]:
    """Write summary.csv, replacement.csv and the figures into `folder`.

    Raises:
        UserError: the disk is full or the folder can't be written to.
    """
    tables = {SUMMARY_TABLE: summarise(outcomes), SHARES_TABLE: gain_shares(outcomes)}
    return write_results(folder, tables, {figure.name: figure.draw for figure in replacement_figures(outcomes)})
