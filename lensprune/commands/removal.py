"""``lensprune removal``."""

from __future__ import annotations

import argparse

from lensprune.commands.options import add_execution, add_json, add_measured
from lensprune.errors import UserError
from lensprune.sweeps.options import (
    Execution,
    Generation,
    Items,
    ItemSampling,
    Loading,
    Prompts,
    Reference,
    Rows,
    Splitting,
    TokenSampling,
    add_options,
    option_values,
    whole_number,
)

__all__ = ["add_arguments", "run"]

GROUPS = (
    Items, ItemSampling, Rows, Prompts, Generation, TokenSampling, Reference, Loading, Splitting, Execution,
)  # fmt: skip


def _counts(text: str) -> list[int]:
    return [whole_number(word) for word in text.split(",")]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_measured(parser)
    removed = parser.add_argument_group("what is removed")
    removed.add_argument(
        "--ranking",
        action="append",
        default=[],
        metavar="[NAME=]PATH",
        help="a ranking of heads: the folder of a sweep over heads or of lensprune heads, or a CSV file with columns "
        "layer, head, value and, for several rankings, score (NAME then chooses one); repeat for several",
    )
    removed.add_argument(
        "--counts",
        type=_counts,
        default=[1, 2, 4, 8, 16],
        metavar="LIST",
        help="how many heads to remove (default: 1,2,4,8,16)",
    )
    removed.add_argument(
        "--keep", action="store_true", help="keep only the first heads of each order, and remove all others"
    )
    removed.add_argument(
        "--random-orders",
        type=whole_number,
        default=20,
        metavar="N",
        help="random orders to compare with, at least 20 (default: 20)",
    )
    removed.add_argument("--ablation", default="zero", metavar="KIND", help="how a head is removed (default: zero)")
    add_options(removed, Reference)
    add_execution(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure, write and print."""
    if not arguments.task:
        raise UserError("no task given: use --task NAME (lensprune tasks lists them)")
    if not arguments.ranking:
        raise UserError("no ranking given: use --ranking FOLDER, of a sweep over heads or of lensprune heads --out")
    from lensprune.heads.rankings import read_rankings
    from lensprune.heads.removal import removal_curves, removal_report

    rankings = read_rankings(arguments.ranking)
    curves = removal_curves(
        arguments.model,
        rankings.frames,
        arguments.task,
        arguments.protocol or ["default"],
        counts=arguments.counts,
        mode="keep" if arguments.keep else "remove",
        orders=["random"],
        random_seeds=arguments.random_orders,
        ablation=arguments.ablation,
        **option_values(arguments, *GROUPS),
        out=arguments.out,
        command=arguments.command_line,
    )
    print(removal_report(curves, rankings, as_json=arguments.json))
    return 0
