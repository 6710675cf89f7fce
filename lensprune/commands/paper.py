"""``lensprune paper``."""

from __future__ import annotations

import argparse

from lensprune.commands.options import add_data_dir, add_model, whole_number

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_model(parser)
    parser.add_argument(
        "--preset", default="smoke", metavar="NAME", help="smoke (bundled tasks, few items; the default) or full"
    )
    parser.add_argument(
        "--base", metavar="NAME", help="base model of the pair that is compared (smoke: toy-base unless given)"
    )
    parser.add_argument(
        "--distilled", metavar="NAME", help="its distilled model (smoke: toy-distilled; full: no pair unless given)"
    )
    parser.add_argument(
        "--seed", type=whole_number, default=0, metavar="N", help="of examples and generated tasks (default: 0)"
    )
    add_data_dir(parser)
    parser.add_argument("--dtype", metavar="NAME", help="float32, bfloat16, float16 or float64 (default: float32)")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    parser.add_argument(
        "--out", default="runs/paper", metavar="FOLDER", help="folder of the study (default: runs/paper)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the study and print where its page is."""
    from lensprune.studies.paper import paper

    page = paper(
        arguments.model,
        arguments.out,
        preset=arguments.preset,
        seed=arguments.seed,
        data_dir=arguments.data_dir,
        dtype=arguments.dtype,
        device=arguments.device,
        command=arguments.command_line,
        base=arguments.base,
        distilled=arguments.distilled,
    )
    print(page)
    return 0
