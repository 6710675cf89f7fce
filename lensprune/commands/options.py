"""Options that several commands share."""

from __future__ import annotations

import argparse

from lensprune.ablation.choices import indexed_words, over_words, reference_kinds
from lensprune.ablation.kinds import ablation_kinds
from lensprune.engine.registry import executor_names
from lensprune.protocols.registry import protocol_names
from lensprune.registry import in_words

__all__ = [
    "add_data_dir",
    "add_items",
    "add_loading",
    "add_measured",
    "add_model",
    "add_out",
    "add_ran",
    "add_spread",
    "add_sweep_options",
    "share",
    "whole_number",
]

Options = argparse.ArgumentParser | argparse._ArgumentGroup


def whole_number(text: str) -> int:
    digits = text.strip()
    if not digits.removeprefix("-").isdecimal() or len(digits) > 18:
        raise argparse.ArgumentTypeError(f"expected a whole number, not {text!r}")
    return int(digits)


def share(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number like 0.1, not {text!r}") from None


def add_model(options: Options, option: str = "--model") -> None:
    """Which model, under the name `option`."""
    options.add_argument(option, required=True, metavar="NAME", help="bundled name, local folder, .gguf file or hub id")


def add_items(
    options: Options,
    limit: str = "the first N items of each task (default: all)",
    shots: str = "few-shot examples (default: the task's own number)",
    seed: str = "of few-shot examples and generated items (default: 0)",
    default_limit: int | None = None,
    default_shots: int | None = None,
) -> None:
    """How many items and examples, and their seed, with each option's help."""
    options.add_argument("--limit", type=whole_number, default=default_limit, metavar="N", help=limit)
    options.add_argument("--shots", type=whole_number, default=default_shots, metavar="N", help=shots)
    options.add_argument("--seed", type=whole_number, default=0, metavar="N", help=seed)


def add_data_dir(options: Options) -> None:
    """Where the rows of tasks that are not bundled lie."""
    options.add_argument(
        "--data-dir",
        metavar="FOLDER",
        help="folder with TASK/SPLIT.jsonl (default: the hub, for tasks that are not bundled)",
    )


def add_loading(options: Options) -> None:
    """How a model is loaded: number type, device and first token."""
    options.add_argument(
        "--dtype", default="float32", metavar="TYPE", help="float32, bfloat16, float16 or float64 (default: float32)"
    )
    options.add_argument("--device", metavar="DEVICE", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    options.add_argument(
        "--bos",
        default="tokenizer",
        metavar="POLICY",
        help="first token: tokenizer (as it does), always or never (default: tokenizer)",
    )


def add_out(options: Options, what: str) -> None:
    """Where `what` is written."""
    options.add_argument("--out", metavar="FOLDER", help=f"{what} (without it nothing is kept)")


def add_measured(parser: argparse.ArgumentParser, models: tuple[str, ...] = ("--model",)) -> argparse._ArgumentGroup:
    """Models, tasks and items."""
    asked = parser.add_argument_group("what is measured")
    for option in models:
        add_model(asked, option)
    asked.add_argument(
        "--task", action="append", default=[], metavar="TASK", help="NAME or NAME[key=value,...]; repeat for several"
    )
    asked.add_argument(
        "--protocol",
        action="append",
        metavar="NAME",
        help=f"{in_words(protocol_names())}; repeat for several (default: default)",
    )
    add_items(asked)
    add_data_dir(asked)
    asked.add_argument("--chat-template", action="store_true", help="put prompts into the model's chat format")
    return asked


def add_ran(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Number type, device, executor and run folder."""
    ran = parser.add_argument_group("how it runs")
    add_loading(ran)
    ran.add_argument(
        "--executor",
        default="forked",
        metavar="NAME",
        help=f"{in_words(executor_names())}, with the same numbers: forked is fast, hooked the reference; sweep: also "
        "ray (default: forked)",
    )
    ran.add_argument("--batch-tokens", type=whole_number, metavar="N", help="tokens in a batch")
    ran.add_argument("--memory", metavar="SIZE", help="what may be taken besides the model's weights, like 4GB")
    add_out(ran, "run folder")
    return ran


def add_sweep_options(parser: argparse.ArgumentParser) -> None:
    """Everything that a sweep is asked for."""
    asked = add_measured(parser)
    asked.add_argument(
        "--lm-eval-task",
        action="append",
        default=[],
        metavar="NAME",
        help="a task of lm-eval's own (extra lm-eval)",
    )
    changed = parser.add_argument_group("what is removed")
    changed.add_argument(
        "--over",
        default="layers",
        metavar="PARTS",
        help=f"{in_words(over_words())} (default: layers)",
    )
    changed.add_argument("--layers", metavar="LIST", help="like 0,10,20-29 (default: all)")
    changed.add_argument("--heads", metavar="LIST", help=f"like 0-8, of {in_words(indexed_words())} (default: all)")
    changed.add_argument(
        "--ablation",
        metavar="KIND",
        help=f"{in_words(list(ablation_kinds()))} (default: skip for layers, else zero)",
    )
    changed.add_argument(
        "--reference",
        default="fewshot",
        metavar="FILE",
        help=f"text file for {in_words(reference_kinds(), 'and')} (default: the task's few-shot examples)",
    )
    changed.add_argument(
        "--mean-mode", default="pooled", metavar="MODE", help="of mean: pooled or per_position (default: pooled)"
    )

    changed.add_argument(
        "--screen",
        type=share,
        metavar="SHARE",
        help="of heads, estimate all and measure only this share, like 0.1, and a random control set",
    )

    ran = add_ran(parser)
    ran.add_argument("--n-devices", type=whole_number, metavar="N", help="split the model over N GPUs")
    add_spread(ran)


def add_spread(group: Options) -> None:
    """How cells are spread with ``--executor ray``."""
    group.add_argument(
        "--workers", type=whole_number, metavar="N", help="workers of --executor ray (default: one a GPU, else a CPU)"
    )
    group.add_argument(
        "--ray-address",
        metavar="ADDRESS",
        help="running cluster of --executor ray, like ray://head:10001 or auto (default: a local one is started)",
    )
