"""``lensprune paper``."""

from __future__ import annotations

import argparse

from lensprune.commands.options import add_model
from lensprune.sweeps.options import Generation, Loading, Rows, Seed, TokenSampling, Wording, add_options, option_values

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_model(parser)
    parser.add_argument(
        "--preset", default="smoke", metavar="NAME", help="smoke (bundled tasks, few items) or full (default: smoke)"
    )
    parser.add_argument(
        "--base", metavar="NAME", help="base model of the pair to compare (default: toy-base for smoke)"
    )
    parser.add_argument(
        "--distilled", metavar="NAME", help="its distilled model (default: toy-distilled for smoke; full has no pair)"
    )
    parser.add_argument(
        "--renamed-tokens",
        action="store_true",
        help="accept models whose special tokens have the same ids but different names",
    )
    add_options(parser, Seed, Rows, Wording, Generation, TokenSampling, Loading)
    parser.add_argument(
        "--out", default="runs/paper", metavar="FOLDER", help="folder for the study (default: runs/paper)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the study and print where its page is."""
    from lensprune.studies.paper import paper

    page = paper(
        arguments.model,
        arguments.out,
        preset=arguments.preset,
        **option_values(arguments, Seed, Rows, Wording, Generation, TokenSampling, Loading),
        command=arguments.command_line,
        base=arguments.base,
        distilled=arguments.distilled,
        renamed_tokens=arguments.renamed_tokens,
    )
    print(page)
    return 0
