"""Arguments that several commands share; their meaning is declared in `lensprune.sweeps.options`."""

from __future__ import annotations

import argparse

from lensprune.ablation.choices import indexed_words, over_words
from lensprune.ablation.kinds import ablation_kinds
from lensprune.ablation.positions import ALL
from lensprune.protocols.registry import protocol_names
from lensprune.registry import in_words
from lensprune.sweeps.options import (
    Execution,
    Generation,
    Items,
    ItemSampling,
    Loading,
    Prefix,
    Prompts,
    Reference,
    Rows,
    Screening,
    Splitting,
    StopEarly,
    TokenSampling,
    Workers,
    add_options,
)

__all__ = ["add_execution", "add_items_file", "add_json", "add_measured", "add_model", "add_out", "add_sweep_options"]

Options = argparse.ArgumentParser | argparse._ArgumentGroup


def add_model(options: Options, option: str = "--model") -> None:
    """Add the option that chooses a model, called `option`."""
    options.add_argument(option, required=True, metavar="NAME", help="bundled name, local folder, .gguf file or hub id")


def add_out(options: Options, what: str) -> None:
    """Add ``--out``, where `what` is written."""
    options.add_argument("--out", metavar="FOLDER", help=f"{what} (without it nothing is stored)")


def add_json(options: Options) -> None:
    """Add ``--json``."""
    options.add_argument(
        "--json", action="store_true", help="print JSON: a list with one object per row, null for missing values"
    )


def add_items_file(options: Options) -> None:
    """Add ``--items-file``, another way to write ``--items @FILE``."""
    options.add_argument(
        "--items-file",
        dest="items",
        default=argparse.SUPPRESS,
        type=lambda path: f"@{path}",
        metavar="FILE",
        help="file with the ids of the items to use, one per line: the same as --items @FILE",
    )


def add_measured(parser: argparse.ArgumentParser, models: tuple[str, ...] = ("--model",)) -> argparse._ArgumentGroup:
    """Add the options that choose models, tasks and items."""
    group = parser.add_argument_group("what is measured")
    for option in models:
        add_model(group, option)
    group.add_argument(
        "--task",
        action="append",
        default=[],
        metavar="TASK",
        help="NAME, NAME[key=value,...] or a YAML file; repeat for several",
    )
    group.add_argument(
        "--protocol",
        action="append",
        metavar="NAME",
        help=f"{in_words(protocol_names())}; repeat for several (default: the protocol default)",
    )
    add_options(group, Items, ItemSampling, Rows, Prompts)
    add_items_file(group)
    add_options(parser.add_argument_group("how texts are generated"), Generation, TokenSampling)
    return group


def add_execution(parser: argparse.ArgumentParser, out: str = "run folder") -> argparse._ArgumentGroup:
    """Add the options of how the model is loaded and run, and where `out` is written."""
    group = parser.add_argument_group("how it runs")
    add_options(group, Loading, Splitting, Execution)
    add_out(group, out)
    return group


def add_sweep_options(parser: argparse.ArgumentParser) -> None:
    """Add all options of a sweep."""
    measured = add_measured(parser)
    measured.add_argument(
        "--lm-eval-task",
        action="append",
        default=[],
        metavar="NAME",
        help="a task as lm-eval defines and scores it (needs the lm-eval extra)",
    )
    add_options(measured, Prefix)
    removed = parser.add_argument_group("what is removed")
    removed.add_argument(
        "--over", default="layers", metavar="PARTS", help=f"{in_words(over_words())} (default: layers)"
    )
    removed.add_argument("--layers", metavar="LIST", help="layers, like 0,10,20-29 (default: all)")
    removed.add_argument(
        "--heads", metavar="LIST", help=f"indices, like 0-8, for {in_words(indexed_words())} (default: all)"
    )
    removed.add_argument(
        "--ablation",
        metavar="KIND",
        help=f"{in_words(list(ablation_kinds()))} (default: skip for layers, else zero)",
    )
    removed.add_argument(
        "--at",
        default=ALL,
        metavar="POSITIONS",
        help="tokens at which it is removed: last, prompt, generated, an index or slice of the prompt (--at=-5:), "
        "generated[0:3], regex:PATTERN; commas unite several (default: all)",
    )
    removed.add_argument(
        "--source",
        metavar="POSITIONS",
        help="for --ablation cut: tokens that those of --at no longer attend to, in the same form",
    )
    add_options(removed, Reference, Screening)
    add_options(parser.add_argument_group("when to stop measuring a variant"), StopEarly)
    add_options(add_execution(parser), Workers)
