"""``lensprune heads``."""

from __future__ import annotations

import argparse

from lensprune.commands.options import add_json, add_model, add_out
from lensprune.sweeps.options import Items, Loading, add_options, option_values, whole_number

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_model(parser)
    parser.add_argument(
        "--score", action="append", metavar="NAME", help="a head function; repeat for several (default: all)"
    )
    parser.add_argument(
        "--run",
        dest="run_folder",
        metavar="FOLDER",
        help="show the effects of this sweep over heads next to the scores",
    )
    parser.add_argument(
        "--text",
        metavar="FILE",
        help="texts, separated by blank lines, for attention sink, entropy and distance (default: random tokens)",
    )
    add_options(parser, Items, limit=20)
    parser.add_argument("--top", type=whole_number, default=5, metavar="N", help="heads to list per score (default: 5)")
    add_options(parser, Loading)
    add_out(parser, "folder for tables and heatmaps")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure, write and print."""
    from lensprune.heads.report import heads_report

    print(
        heads_report(
            arguments.model,
            arguments.out,
            scores=arguments.score,
            run=arguments.run_folder,
            text_file=arguments.text,
            **option_values(arguments, Items, Loading),
            most=arguments.top,
            as_json=arguments.json,
        )
    )
    return 0
