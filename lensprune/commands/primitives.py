"""``lensprune primitives``."""

from __future__ import annotations

import argparse

from lensprune.commands.options import add_items, add_loading, add_model, add_out, share, whole_number

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_model(parser)
    parser.add_argument("--operands", type=whole_number, default=3, metavar="N", help="numbers in a chain (default: 3)")
    parser.add_argument("--largest", type=whole_number, default=9, metavar="N", help="largest result (default: 9)")
    parser.add_argument("--no-subtract", action="store_true", help="chains only add")
    add_items(
        parser,
        limit="chains (default: 24)",
        shots="worked chains in front of each (default: 4)",
        seed="of chains, pairs and resampling (default: 0)",
        default_limit=24,
        default_shots=4,
    )
    parser.add_argument("--layers", metavar="RANGE", help="heads and MLPs of these layers only, like 0-3,7")
    parser.add_argument("--ablation", default="zero", metavar="KIND", help="zero or mean (default: zero)")
    parser.add_argument(
        "--text", metavar="FILE", help="general texts, parted by blank lines (default: bundled facts and questions)"
    )
    parser.add_argument(
        "--text-task", metavar="TASK", help="another task's right answers in place of general text; NAME[key=value,...]"
    )
    parser.add_argument("--least-effect", type=share, default=0.1, metavar="NATS", help="least effect of a removal")
    parser.add_argument(
        "--least-share", type=share, default=0.1, metavar="SHARE", help="least share that a patch moves"
    )
    parser.add_argument(
        "--draws", type=whole_number, default=20, metavar="N", help="random sets of heads beside each role's (0: none)"
    )
    parser.add_argument(
        "--selectivity-ablation",
        metavar="KIND",
        help="how whole sets are removed: zero, mean or resample (default: as --ablation)",
    )
    add_loading(parser)
    add_out(parser, "folder for tables and heatmaps")


def run(arguments: argparse.Namespace) -> int:
    """Measure, write and print."""
    from lensprune.primitives.report import primitives_report

    print(
        primitives_report(
            arguments.model,
            arguments.out,
            operands=arguments.operands,
            largest=arguments.largest,
            subtract=not arguments.no_subtract,
            limit=arguments.limit,
            shots=arguments.shots,
            layers=arguments.layers,
            ablation=arguments.ablation,
            text_file=arguments.text,
            text_task=arguments.text_task,
            least_effect=arguments.least_effect,
            least_share=arguments.least_share,
            draws=arguments.draws,
            selectivity_ablation=arguments.selectivity_ablation,
            seed=arguments.seed,
            dtype=arguments.dtype,
            device=arguments.device,
            bos=arguments.bos,
        )
    )
    return 0
