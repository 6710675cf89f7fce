"""The work of ``lensprune report``: a page about one run, a weight replacement, or two runs."""

from __future__ import annotations

from pathlib import Path

from lensprune.errors import UserError
from lensprune.replacement.page import write_replacement_report
from lensprune.replacement.result import ReplacementRun
from lensprune.results.compare import write_comparison
from lensprune.results.page import write_report
from lensprune.results.run import Run
from lensprune.runs.folder import read_spec
from lensprune.terminal import stage

__all__ = ["report"]


def report(
    folder: str | Path,
    other: str | Path | None = None,
    *,
    out: str | Path | None = None,
    patterns: int = 0,
    progress: bool = True,
) -> Path:
    """Write the report of the run in `folder` (from `sweep` or `measure_replacement`), or its comparison with the run
    in `other`.

    Args:
        patterns: number of heads whose attention patterns are included; not for a replacement.
        progress: show what is being computed.

    Returns:
        The page.

    Raises:
        UserError: no run there, an unfinished replacement, a comparison with a replacement, runs with nothing in
            common, the same folder twice, or a place that can't be written to.
    """
    replacements = [place for place in (folder, other) if place is not None and read_spec(Path(place)).replaces_weights]
    if patterns and replacements:
        raise UserError(
            f"--patterns: {replacements[0]} holds a weight replacement, which has no patterns: leave it out"
        )
    if other is None:
        return (
            write_replacement_report(ReplacementRun.load(folder), out)
            if replacements
            else write_report(Run.load(folder), out, patterns=patterns, progress=progress)
        )
    if Path(folder).resolve() == Path(other).resolve():
        raise UserError(f"{folder} is given twice: choose a different run to compare with")
    if replacements:
        raise UserError(
            f"{replacements[0]} contains a weight replacement, but only sweeps can be compared: report it alone"
        )
    with stage(f"comparing {folder} and {other}", shown=progress):
        return write_comparison(Run.load(folder), Run.load(other), out, patterns=patterns)
