"""``lensprune report``."""

from __future__ import annotations

import argparse
from pathlib import Path

from lensprune.sweeps.options import whole_number

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("folder", metavar="FOLDER", help="run folder")
    parser.add_argument("other", nargs="?", metavar="OTHER", help="a second run to compare with the first")
    parser.add_argument(
        "--patterns",
        type=whole_number,
        default=0,
        metavar="N",
        help="include attention patterns of the N heads with the largest losses, each on one item of every task and "
        "protocol; loads the run's model",
    )
    parser.add_argument(
        "--out", metavar="FILE", help="file to write (default: report.html in FOLDER, or against-FOLDER.html in OTHER)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the page and print where it is."""
    from lensprune.runs.folder import read_spec

    # Before the libraries that draw, which take seconds to import.
    for folder in filter(None, (arguments.folder, arguments.other)):
        read_spec(Path(folder))
    from lensprune.studies.report import report

    print(report(arguments.folder, arguments.other, out=arguments.out, patterns=arguments.patterns))
    return 0
