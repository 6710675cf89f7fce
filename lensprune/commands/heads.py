"""``lensprune heads``."""

from __future__ import annotations

import argparse

from lensprune.commands.options import add_items, add_loading, add_model, add_out, whole_number

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_model(parser)
    parser.add_argument(
        "--score", action="append", metavar="NAME", help="a head function; repeat for several (default: all)"
    )
    parser.add_argument(
        "--run", dest="run_folder", metavar="FOLDER", help="put the effects of this sweep over heads beside the scores"
    )
    parser.add_argument(
        "--text",
        metavar="FILE",
        help="texts, parted by blank lines, for attention sink, entropy and distance (default: random tokens)",
    )
    add_items(
        parser,
        limit="items behind retrieval and arithmetic scores (default: 20)",
        shots="worked examples in front of each item",
        seed="of random tokens and generated items (default: 0)",
        default_limit=20,
    )
    parser.add_argument(
        "--top", type=whole_number, default=5, metavar="N", help="heads to name for each score (default: 5)"
    )
    add_loading(parser)
    add_out(parser, "folder for tables and heatmaps")


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
            limit=arguments.limit,
            shots=arguments.shots,
            seed=arguments.seed,
            dtype=arguments.dtype,
            device=arguments.device,
            bos=arguments.bos,
            most=arguments.top,
        )
    )
    return 0
