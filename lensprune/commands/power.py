"""``lensprune power``."""

from __future__ import annotations

import argparse

from lensprune.commands.options import add_json
from lensprune.sweeps.options import Rows, add_options, decimal, option_values, whole_number

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument(
        "--parts",
        type=whole_number,
        required=True,
        metavar="N",
        help="number of variants tested together: the sweep's layers or heads",
    )
    parser.add_argument(
        "--n", type=whole_number, action="append", metavar="N", help="number of items; repeat for several"
    )
    parser.add_argument("--task", metavar="TASK", help="take the clusters and the number of items from this task")
    add_options(parser, Rows)
    parser.add_argument("--clusters", type=whole_number, metavar="N", help="number of clusters of items")
    parser.add_argument(
        "--flips",
        type=decimal,
        metavar="SHARE",
        help="share of items that every part changes by chance (default: 0.02)",
    )
    add_json(parser)
    parser.add_argument("--out", metavar="FOLDER", help="folder for the table and a figure")


def run(arguments: argparse.Namespace) -> int:
    """Compute and print."""
    from lensprune.analysis.power import FLIPS
    from lensprune.results.power import power_report
    from lensprune.terminal import stage

    flips = FLIPS if arguments.flips is None else arguments.flips
    with stage("smallest losses", shown=True):
        text = power_report(
            arguments.parts,
            arguments.n,
            task=arguments.task,
            clusters=arguments.clusters,
            flips=flips,
            out=arguments.out,
            as_json=arguments.json,
            **option_values(arguments, Rows),
        )
    print(text)
    return 0
