"""``lensprune delta``."""

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
    Rows,
    Splitting,
    TokenSampling,
    decimal,
    option_values,
)

__all__ = ["add_arguments", "run"]

GROUPS = (Items, ItemSampling, Rows, Prompts, Generation, TokenSampling, Loading, Splitting, Execution)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_measured(parser, models=("--base", "--distilled"))
    changed = parser.add_argument_group("what is replaced")
    changed.add_argument(
        "--component",
        default="attention_output",
        metavar="PART",
        help="attention_output, attention, mlp, layer, head, norms, embed or unembed (default: attention_output)",
    )
    changed.add_argument(
        "--mode",
        default="single",
        metavar="MODE",
        help="single, cumulative or range (all chosen at once; default: single)",
    )
    changed.add_argument(
        "--direction",
        default="both",
        metavar="WAY",
        help="forward (into the base), backward (out of the distilled model) or both (default: both)",
    )
    changed.add_argument(
        "--start", default="bottom", metavar="END", help="for cumulative: start at the bottom or top (default: bottom)"
    )
    changed.add_argument("--layers", metavar="LIST", help="layers, like 0,10,20-29 (default: all)")
    changed.add_argument("--heads", metavar="LIST", help="heads, like 0-8, for --component head (default: all)")
    changed.add_argument(
        "--alpha",
        type=decimal,
        default=1.0,
        metavar="A",
        help="how far to interpolate, A in base + A·(distilled − base), 0 to 1 (default: 1)",
    )
    changed.add_argument(
        "--settings-of",
        default="distilled",
        metavar="MODEL",
        help="whose chat template, end tokens and generation config both models are measured with: base or distilled "
        "(default: distilled)",
    )
    changed.add_argument(
        "--renamed-tokens",
        action="store_true",
        help="accept models whose special tokens have the same ids but different names",
    )
    add_execution(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure, write and print."""
    if not arguments.task:
        raise UserError("no task given: use --task NAME (lensprune tasks lists them)")
    from lensprune.replacement import measure_replacement
    from lensprune.replacement.text import replacement_report

    result = measure_replacement(
        arguments.base,
        arguments.distilled,
        tasks=arguments.task,
        protocols=arguments.protocol or ["default"],
        component=arguments.component,
        mode=arguments.mode,
        direction=arguments.direction,
        start=arguments.start,
        layers=arguments.layers,
        heads=arguments.heads,
        alpha=arguments.alpha,
        renamed_tokens=arguments.renamed_tokens,
        settings_of=arguments.settings_of,
        **option_values(arguments, *GROUPS),
        out=arguments.out,
        command=arguments.command_line,
    )
    print(replacement_report(result, as_json=arguments.json))
    return 0
