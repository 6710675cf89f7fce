"""``lensprune attribute``."""

from __future__ import annotations

import argparse

from lensprune.commands.options import add_model, add_out
from lensprune.sweeps.options import Items, Loading, add_options, option_values, whole_number

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_model(parser)
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
    add_options(parser, Items, limit=10)
    parser.add_argument(
        "--receiver", default="logits", metavar="INPUT", help="for path: logits (the default), L5.H1.q, L5.KV0.k, ..."
    )
    parser.add_argument(
        "--total", action="store_true", help="for path: patch each head too, and tell what later parts make up for"
    )
    parser.add_argument(
        "--steps", type=whole_number, default=5, metavar="N", help="for eap-ig: steps (default: 5; 1 is EAP)"
    )
    parser.add_argument(
        "--rule",
        default="plain",
        metavar="NAME",
        help="for atp and eap-ig: the gradient, plain (the default), relp (relevance coefficients) or gim (frozen "
        "norms, softer attention)",
    )
    parser.add_argument("--no-curve", action="store_true", help="for eap-ig: score all pairs and draw no curve")
    parser.add_argument("--top", type=whole_number, default=10, metavar="N", help="rows to print (default: 10)")
    add_options(parser, Loading)
    add_out(parser, "folder for tables and figures")


def run(arguments: argparse.Namespace) -> int:
    """Attribute, write and print."""
    from lensprune.attribution.report import AttributionOptions, attribution_report

    print(
        attribution_report(
            arguments.model,
            arguments.method,
            arguments.task,
            arguments.out,
            **option_values(arguments, Items, Loading),
            options=AttributionOptions(
                receiver=arguments.receiver,
                total=arguments.total,
                steps=arguments.steps,
                curve=not arguments.no_curve,
                rule=arguments.rule,
            ),
            most=arguments.top,
        )
    )
    return 0
