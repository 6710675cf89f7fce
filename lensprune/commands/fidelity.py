"""``lensprune fidelity``."""

from __future__ import annotations

import argparse

from lensprune.commands.options import whole_number

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument(
        "--model", required=True, metavar="NAME", help="bundled name, local folder, .gguf file or hub id"
    )
    parser.add_argument(
        "--task",
        action="append",
        required=True,
        metavar="TASK",
        help="NAME or NAME[key=value,...] that can be generated; repeat for several",
    )
    parser.add_argument("--over", default="layers", metavar="PART", help="layers or heads (default: layers)")
    parser.add_argument("--layers", metavar="RANGE", help="these layers, or heads of these layers, like 0-3,7")
    parser.add_argument(
        "--validate",
        action="store_true",
        help="sweep under every protocol too, and correlate fidelity and its baselines with what is lost",
    )
    parser.add_argument(
        "--protocol",
        action="append",
        metavar="PROTOCOL",
        help="with --validate: sweep under these, generate among them (default: all three)",
    )
    parser.add_argument("--limit", type=whole_number, default=24, metavar="N", help="items of each task (default: 24)")
    parser.add_argument("--shots", type=whole_number, metavar="N", help="few-shot examples (default: the task's own)")
    parser.add_argument("--seed", type=whole_number, default=0, metavar="N", help="of examples and generated items")
    parser.add_argument("--data-dir", metavar="FOLDER", help="folder with TASK/SPLIT.jsonl")
    parser.add_argument("--device", metavar="DEVICE", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    parser.add_argument("--out", metavar="FOLDER", help="folder for tables (without it nothing is kept)")


def run(arguments: argparse.Namespace) -> int:
    """Measure, write and print."""
    from lensprune.report.fidelity_report import fidelity_report

    print(
        fidelity_report(
            arguments.model,
            arguments.task,
            arguments.out,
            over=arguments.over,
            layers=arguments.layers,
            validate=arguments.validate,
            protocols=arguments.protocol,
            limit=arguments.limit,
            shots=arguments.shots,
            seed=arguments.seed,
            data_dir=arguments.data_dir,
            device=arguments.device,
        )
    )
    return 0
