"""``lensprune attribute``."""

from __future__ import annotations

import argparse

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument(
        "--model", required=True, metavar="NAME", help="bundled name, local folder, .gguf file or hub id"
    )
    parser.add_argument(
        "--method",
        required=True,
        metavar="NAME",
        help="dla (direct logit attribution), lens, patch (activation patching), atp (attribution patching), path "
        "(path patching) or eap-ig (edges, with a faithfulness curve)",
    )
    parser.add_argument(
        "--task", default="kv_retrieval", metavar="TASK", help="kv_retrieval (the default) or arithmetic"
    )
    parser.add_argument("--limit", type=int, default=10, metavar="N", help="pairs of prompts (default: 10)")
    parser.add_argument("--shots", type=int, metavar="N", help="few-shot examples (default: the task's own number)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of items and their counterparts")
    parser.add_argument(
        "--receiver", default="logits", metavar="INPUT", help="for path: logits (the default), L5.H1.q, L5.KV0.k, ..."
    )
    parser.add_argument(
        "--total", action="store_true", help="for path: patch each head too, and tell what later parts make up for"
    )
    parser.add_argument("--steps", type=int, default=5, metavar="N", help="for eap-ig: steps (default: 5; 1 is EAP)")
    parser.add_argument("--no-curve", action="store_true", help="for eap-ig: score all pairs and draw no curve")
    parser.add_argument("--top", type=int, default=10, metavar="N", help="rows to print (default: 10)")
    parser.add_argument("--dtype", default="float32", metavar="TYPE", help="float32, bfloat16, float16 or float64")
    parser.add_argument("--device", metavar="DEVICE", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    parser.add_argument("--bos", default="tokenizer", metavar="POLICY", help="tokenizer, always or never")
    parser.add_argument("--out", metavar="FOLDER", help="folder for tables and figures (without it nothing is kept)")


def run(arguments: argparse.Namespace) -> int:
    """Attribute, write and print."""
    from lensprune.report.attribution_report import AttributionOptions, attribution_report

    print(
        attribution_report(
            arguments.model,
            arguments.method,
            arguments.task,
            arguments.out,
            limit=arguments.limit,
            shots=arguments.shots,
            seed=arguments.seed,
            options=AttributionOptions(
                receiver=arguments.receiver,
                total=arguments.total,
                steps=arguments.steps,
                curve=not arguments.no_curve,
            ),
            dtype=arguments.dtype,
            device=arguments.device,
            bos=arguments.bos,
            most=arguments.top,
        )
    )
    return 0
