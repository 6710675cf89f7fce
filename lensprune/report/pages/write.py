"""The job of ``lensprune report``: a page about one run, or about two."""

from __future__ import annotations

from pathlib import Path

from lensprune.report.pages.compare import write_comparison
from lensprune.report.pages.run import write_report
from lensprune.sweep.result import Run

__all__ = ["report"]


def report(folder: str | Path, other: str | Path | None = None, *, out: str | Path | None = None) -> Path:
    """Write the report of the run in `folder`, or the comparison with the run in `other`.

    Returns:
        The page.

    Raises:
        UserError: no run there, runs that share nothing, or a place that can't be written to.
    """
    if other is None:
        return write_report(Run.load(folder), out)
    return write_comparison(Run.load(folder), Run.load(other), out)
