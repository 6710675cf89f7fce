"""``lensprune runs``."""

from __future__ import annotations

import argparse

from lensprune.commands.options import add_json

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument(
        "folder", nargs="?", default="runs", metavar="FOLDER", help="folder that contains the runs (default: runs)"
    )
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Look and print."""
    from lensprune.output.tables import frame_json, frame_rows
    from lensprune.results.listing import runs_in

    runs = runs_in(arguments.folder)
    print(frame_json(runs) if arguments.json else frame_rows(runs, {}))
    return 0
