"""``lensprune noise``."""

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
    option_values,
)

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_measured(parser)
    add_execution(parser, "folder for the table")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure, write and print."""
    if not arguments.task:
        raise UserError("no task given: use --task NAME (lensprune tasks lists them)")
    from lensprune.results.noise import noise_report
    from lensprune.sweeps.noise import noise

    groups = (Items, ItemSampling, Rows, Prompts, Generation, TokenSampling, Loading, Splitting, Execution)
    table = noise(
        arguments.model, arguments.task, arguments.protocol or ["default"], **option_values(arguments, *groups)
    )
    print(noise_report(table, arguments.out, as_json=arguments.json))
    return 0
