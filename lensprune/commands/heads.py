"""``lensprune heads``."""

from __future__ import annotations

import argparse

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument(
        "--model", required=True, metavar="NAME", help="bundled name, local folder, .gguf file or hub id"
    )
    parser.add_argument(
        "--score", action="append", metavar="NAME", help="a head function; repeat for several (default: all)"
    )
    parser.add_argument(
        "--run", dest="run_folder", metavar="FOLDER", help="put the effects of this sweep over heads beside the scores"
    )
    parser.add_argument(
        "--text",
        metavar="FILE",
        help="texts, parted by blank lines, for attention sink, entropy and distance (default: random tokens)",
    )
    parser.add_argument(
        "--limit", type=int, default=20, metavar="N", help="items behind retrieval and arithmetic scores (default: 20)"
    )
    parser.add_argument("--shots", type=int, metavar="N", help="worked examples in front of each item")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of random tokens and generated items (default: 0)"
    )
    parser.add_argument("--top", type=int, default=5, metavar="N", help="heads to name for each score (default: 5)")
    parser.add_argument(
        "--dtype", default="float32", metavar="TYPE", help="float32, bfloat16, float16 or float64 (default: float32)"
    )
    parser.add_argument("--device", metavar="DEVICE", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    parser.add_argument(
        "--bos",
        default="tokenizer",
        metavar="POLICY",
        help="first token: tokenizer (as it does), always or never (default: tokenizer)",
    )
    parser.add_argument("--out", metavar="FOLDER", help="folder for tables and heatmaps (without it nothing is kept)")


def run(arguments: argparse.Namespace) -> int:
    """Measure, write and print."""
    from lensprune.report.head_report import heads_report

    print(
        heads_report(
            arguments.model,
            arguments.out,
            scores=arguments.score,
            run=arguments.run_folder,
            text_file=arguments.text,
            limit=arguments.limit,
            shots=arguments.shots,
            seed=arguments.seed,
            dtype=arguments.dtype,
            device=arguments.device,
            bos=arguments.bos,
            most=arguments.top,
        )
    )
    return 0
