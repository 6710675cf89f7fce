"""``lensprune analyse``."""

from __future__ import annotations

import argparse
from pathlib import Path

from lensprune.commands.options import add_json, add_out
from lensprune.errors import UserError

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("folder", metavar="FOLDER", help="run folder")
    parser.add_argument(
        "analysis", nargs="?", metavar="NAME", help="NAME or NAME[key=value,...] (default: list all with their options)"
    )
    parser.add_argument("--task", metavar="TASK", help="a task of the run (default: all)")
    parser.add_argument("--protocol", metavar="NAME", help="a protocol of the run (default: all)")
    add_json(parser)
    add_out(parser, "folder for the table and the figure")


def run(arguments: argparse.Namespace) -> int:
    """Measure, write and print."""
    from lensprune.runs.folder import read_spec

    # Before the libraries that draw, which take seconds to import.
    read_spec(Path(arguments.folder))
    from lensprune.results.text import analyses_list, analysis_report
    from lensprune.terminal import stage

    if arguments.analysis is None:
        if arguments.json:
            raise UserError("--json prints the table of an analysis: name one (without --json they are listed)")
        print(analyses_list(arguments.folder))
    else:
        given = (arguments.analysis, arguments.task, arguments.protocol)
        with stage(f"computing {arguments.analysis}", shown=True):
            text = analysis_report(arguments.folder, *given, out=arguments.out, as_json=arguments.json)
        print(text)
    return 0
