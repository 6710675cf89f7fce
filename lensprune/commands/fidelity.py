"""``lensprune fidelity``."""

from __future__ import annotations

import argparse

from lensprune.commands.options import add_execution, add_items_file, add_json, add_model
from lensprune.sweeps.options import (
    Execution,
    Generation,
    Items,
    ItemSampling,
    Loading,
    Prompts,
    Rows,
    Splitting,
    add_options,
    option_values,
)

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_model(parser)
    parser.add_argument(
        "--task",
        action="append",
        required=True,
        metavar="TASK",
        help="NAME, NAME[key=value,...] or a YAML file; must support generate; repeat for several",
    )
    parser.add_argument("--over", default="layers", metavar="PART", help="layers or heads (default: layers)")
    parser.add_argument("--layers", metavar="RANGE", help="only these layers, or heads of these layers, like 0-3,7")
    parser.add_argument(
        "--validate",
        action="store_true",
        help="also sweep under every protocol, and correlate fidelity and its baselines with the losses",
    )
    parser.add_argument(
        "--protocol",
        action="append",
        metavar="PROTOCOL",
        help="with --validate: protocols of the sweep, including generate (default: all three)",
    )
    add_options(parser, Items, ItemSampling, Rows, Prompts, Generation, limit=24)
    add_items_file(parser)
    add_execution(parser, "folder for tables")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure, write and print."""
    from lensprune.divergence.report import fidelity_report

    print(
        fidelity_report(
            arguments.model,
            arguments.task,
            arguments.out,
            over=arguments.over,
            layers=arguments.layers,
            validate=arguments.validate,
            protocols=arguments.protocol,
            as_json=arguments.json,
            **option_values(arguments, Items, ItemSampling, Rows, Prompts, Generation, Loading, Splitting, Execution),
        )
    )
    return 0
