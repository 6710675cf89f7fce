"""``lensprune delta``."""

from __future__ import annotations

import argparse

from lensprune.commands.options import add_measured, add_ran
from lensprune.errors import UserError

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_measured(parser, models=("--base", "--distilled"))
    changed = parser.add_argument_group("what is exchanged")
    changed.add_argument(
        "--component",
        default="attn_out",
        metavar="PART",
        help="attn_out, attention, mlp, layer, head, norms, embed or unembed (default: attn_out)",
    )
    changed.add_argument(
        "--mode",
        default="single",
        metavar="MODE",
        help="single, cumulative or range (all chosen at once; default: single)",
    )
    changed.add_argument(
        "--direction",
        default="both",
        metavar="WAY",
        help="forward (into the base), backward (out of the distilled) or both (default: both)",
    )
    changed.add_argument(
        "--start", default="bottom", metavar="END", help="of cumulative: bottom or top (default: bottom)"
    )
    changed.add_argument("--layers", metavar="LIST", help="like 0,10,20-29 (default: all)")
    changed.add_argument("--heads", metavar="LIST", help="like 0-8, for head (default: all)")
    changed.add_argument(
        "--alpha", type=float, default=1.0, metavar="A", help="base + A·(distilled − base), 0 to 1 (default: 1)"
    )
    add_ran(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure, write and print."""
    if not arguments.task:
        raise UserError("no task is given: --task NAME (lensprune tasks lists them)")
    from lensprune.replacement import measure_delta
    from lensprune.replacement.text import delta_report

    result = measure_delta(
        arguments.base,
        arguments.distilled,
        tasks=arguments.task,
        protocols=arguments.protocol or ["default"],
        component=arguments.component,
        mode=arguments.mode,
        direction=arguments.direction,
        start=arguments.start,
        layers=arguments.layers,
        heads=arguments.heads,
        alpha=arguments.alpha,
        limit=arguments.limit,
        shots=arguments.shots,
        seed=arguments.seed,
        data_dir=arguments.data_dir,
        chat_template=arguments.chat_template,
        dtype=arguments.dtype,
        device=arguments.device,
        bos=arguments.bos,
        executor=arguments.executor,
        batch_tokens=arguments.batch_tokens,
        memory=arguments.memory,
        out=arguments.out,
        command=arguments.command_line,
    )
    print(delta_report(result))
    return 0
