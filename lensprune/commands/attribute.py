"""``lensprune attribute``."""

from __future__ import annotations

import argparse

from lensprune.commands.options import add_json, add_model, add_out
from lensprune.errors import UserError
from lensprune.registry import in_words
from lensprune.sweeps.options import Items, Loading, add_options, option_values, whole_number

__all__ = ["add_arguments", "run"]

_LIMIT = 10
_TEXTS = {
    "clean": "a custom prompt, instead of a task's",
    "corrupt": "the same prompt, changed so that the answer changes, with the same number of tokens",
    "answer": "the clean prompt's continuation, with its leading space",
    "wrong": "the corrupt prompt's continuation",
}
"""Options for custom pairs."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_model(parser)
    parser.add_argument(
        "--method",
        required=True,
        metavar="NAME",
        help="dla (direct logit attribution), lens, patch (activation patching), atp (attribution patching), path "
        "(path patching), eap-ig (edges, with a faithfulness curve) or qk (why a head attends)",
    )
    prompts = parser.add_argument_group("prompts")
    prompts.add_argument("--task", metavar="TASK", help="kv_retrieval (the default) or arithmetic")
    add_options(prompts, Items, limit=_LIMIT)
    # Distinguishes the default from a given task, which can't be combined with texts.
    parser.set_defaults(limit=None)
    for name, what in _TEXTS.items():
        prompts.add_argument(f"--{name}", action="append", metavar="TEXT", help=f"{what}; repeat for several pairs")
    parser.add_argument(
        "--receiver",
        default="logits",
        metavar="INPUT",
        help="for path: logits, L5.H1.q, L5.KV0.k, ... (default: logits); for qk: a head, L5.H1",
    )
    parser.add_argument(
        "--destination",
        type=whole_number,
        default=-1,
        metavar="POSITION",
        help="for qk: the token that attends (default: -1, the last)",
    )
    parser.add_argument(
        "--source",
        type=whole_number,
        metavar="POSITION",
        help="for qk: the token attended to (default: the most attended one after the first)",
    )
    parser.add_argument(
        "--total",
        action="store_true",
        help="for path: also patch each head, and report how much later parts compensate",
    )
    parser.add_argument(
        "--steps",
        type=whole_number,
        default=5,
        metavar="N",
        help="for eap-ig: integration steps (default: 5; 1 is EAP)",
    )
    parser.add_argument(
        "--rule",
        default="plain",
        metavar="NAME",
        help="for atp and eap-ig: gradient rule: plain (the default), relp (relevance coefficients) or gim (frozen "
        "norms, softer attention)",
    )
    parser.add_argument(
        "--no-curve", action="store_true", help="for eap-ig: score all pairs, without a faithfulness curve"
    )
    parser.add_argument("--top", type=whole_number, default=10, metavar="N", help="rows to print (default: 10)")
    add_options(parser, Loading)
    add_out(parser, "folder for tables and figures")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Attribute, write and print."""
    texts = _texts(arguments)
    from lensprune.attribution.methods import AttributionOptions
    from lensprune.attribution.report import PairTexts, attribution_report

    values = option_values(arguments, Items, Loading)
    print(
        attribution_report(
            arguments.model,
            arguments.method,
            arguments.task or "kv_retrieval",
            arguments.out,
            texts=[PairTexts(*text) for text in texts] or None,
            **{**values, "limit": values["limit"] or _LIMIT},
            options=AttributionOptions(
                receiver=arguments.receiver,
                total=arguments.total,
                steps=arguments.steps,
                curve=not arguments.no_curve,
                rule=arguments.rule,
                destination=arguments.destination,
                source=arguments.source,
            ),
            most=arguments.top,
            as_json=arguments.json,
        )
    )
    return 0


def _texts(arguments: argparse.Namespace) -> list[tuple[str, ...]]:
    """The pairs given as texts, in the order of `_TEXTS`; empty if a task is used.

    Raises:
        UserError: some of a pair's texts are missing, or an option for tasks is given too.
    """
    given: dict[str, list[str]] = {name: getattr(arguments, name) or [] for name in _TEXTS}
    flags = [f"--{name}" for name in _TEXTS]
    if not any(given.values()):
        return []
    if len({len(texts) for texts in given.values()}) > 1:
        lacking = min(given, key=lambda name: len(given[name]))
        raise UserError(f"--{lacking} is missing: a custom pair needs {in_words(flags, 'and')}, each once per pair")
    for name in ("task", "limit", "shots"):
        if getattr(arguments, name) is not None:
            raise UserError(f"--{name} can't be combined with {in_words(flags, 'and')}: leave it out")
    return list(zip(*given.values(), strict=True))
