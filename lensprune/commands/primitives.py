"""``lensprune primitives``."""

from __future__ import annotations

import argparse

from lensprune.commands.options import share, whole_number

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument(
        "--model", required=True, metavar="NAME", help="bundled name, local folder, .gguf file or hub id"
    )
    parser.add_argument("--operands", type=whole_number, default=3, metavar="N", help="numbers in a chain (default: 3)")
    parser.add_argument("--largest", type=whole_number, default=9, metavar="N", help="largest result (default: 9)")
    parser.add_argument("--no-subtract", action="store_true", help="chains only add")
    parser.add_argument("--limit", type=whole_number, default=24, metavar="N", help="chains (default: 24)")
    parser.add_argument(
        "--shots", type=whole_number, default=4, metavar="N", help="worked chains in front of each (default: 4)"
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
    parser.add_argument("--seed", type=whole_number, default=0, metavar="N", help="of chains, pairs and resampling")
    parser.add_argument("--dtype", default="float32", metavar="TYPE", help="float32, bfloat16, float16 or float64")
    parser.add_argument("--device", metavar="DEVICE", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    parser.add_argument("--bos", default="tokenizer", metavar="POLICY", help="tokenizer, always or never")
    parser.add_argument("--out", metavar="FOLDER", help="folder for tables and heatmaps (without it nothing is kept)")


def run(arguments: argparse.Namespace) -> int:
    """Measure, write and print."""
    from lensprune.report.primitives_report import primitives_report

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
