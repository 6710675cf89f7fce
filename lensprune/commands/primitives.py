"""``lensprune primitives``."""

from __future__ import annotations

import argparse

from lensprune.commands.options import add_json, add_model, add_out
from lensprune.sweeps.options import Items, Loading, add_options, decimal, option_values, whole_number

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_model(parser)
    parser.add_argument("--operands", type=whole_number, default=3, metavar="N", help="numbers in a chain (default: 3)")
    parser.add_argument("--largest", type=whole_number, default=9, metavar="N", help="largest result (default: 9)")
    parser.add_argument("--no-subtract", action="store_true", help="use chains of additions only")
    add_options(parser, Items, limit=24, shots=4)
    parser.add_argument("--layers", metavar="RANGE", help="only heads and MLPs of these layers, like 0-3,7")
    parser.add_argument("--ablation", default="zero", metavar="KIND", help="zero or mean (default: zero)")
    parser.add_argument(
        "--text", metavar="FILE", help="general texts, separated by blank lines (default: bundled facts and questions)"
    )
    parser.add_argument(
        "--text-task", metavar="TASK", help="use another task's right answers as the general text; NAME[key=value,...]"
    )
    parser.add_argument(
        "--least-effect",
        type=decimal,
        default=0.1,
        metavar="NATS",
        help="smallest effect of a removal that counts, in nats (default: 0.1)",
    )
    parser.add_argument(
        "--least-share",
        type=decimal,
        default=0.1,
        metavar="SHARE",
        help="smallest effect of a patch that counts, as a share of the whole change (default: 0.1)",
    )
    parser.add_argument(
        "--draws",
        type=whole_number,
        default=20,
        metavar="N",
        help="number of random sets to compare each role's heads with (default: 20; 0: none)",
    )
    parser.add_argument(
        "--selectivity-ablation",
        metavar="KIND",
        help="how whole sets are ablated: zero, mean or resample (default: as --ablation)",
    )
    parser.add_argument(
        "--where",
        action="store_true",
        help="also remove the heads that matter at the tokens of one class at a time: operators, results, ...",
    )
    add_options(parser, Loading)
    add_out(parser, "folder for tables and heatmaps")
    add_json(parser)


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
            **option_values(arguments, Items, Loading),
            layers=arguments.layers,
            ablation=arguments.ablation,
            text_file=arguments.text,
            text_task=arguments.text_task,
            least_effect=arguments.least_effect,
            least_share=arguments.least_share,
            draws=arguments.draws,
            selectivity_ablation=arguments.selectivity_ablation,
            where=arguments.where,
            as_json=arguments.json,
        )
    )
    return 0
