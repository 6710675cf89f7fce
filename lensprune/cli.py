"""The command line: reads arguments, calls one public function, prints what it gives back.

A mistake of the user's is one line on standard error and exit code 2; Ctrl-C is exit code 130 and a line that
says how to go on. Libraries that take seconds to import are imported by the command that needs them.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from lensprune import __version__
from lensprune.commands import heads as heads_command
from lensprune.errors import LensPruneError, UserError, unknown_name

__all__ = ["main"]

_LONGEST_MESSAGE = 600


class _Parser(argparse.ArgumentParser):
    """Reports a wrong argument as any other mistake is reported: without the usage text."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def _one_line(message: str) -> str:
    line = "".join(c if c.isprintable() else " " for c in " ".join(message.split()))
    return line if len(line) <= _LONGEST_MESSAGE else f"{line[:_LONGEST_MESSAGE]}..."


def _whole_number(text: str) -> int:
    digits = text.strip()
    if not digits.removeprefix("-").isdecimal() or len(digits) > 18:
        raise argparse.ArgumentTypeError(f"expected a whole number, not {text!r}")
    return int(digits)


def _add_sweep_options(parser: argparse.ArgumentParser) -> None:
    asked = parser.add_argument_group("what is measured")
    asked.add_argument(
        "--model", required=True, metavar="NAME", help="bundled name, local folder, .gguf file or hub id"
    )
    asked.add_argument(
        "--task", action="append", default=[], metavar="TASK", help="NAME or NAME[key=value,...]; repeat for several"
    )
    asked.add_argument(
        "--lm-eval-task",
        action="append",
        default=[],
        metavar="NAME",
        help="a task of lm-eval's own (extra lm-eval)",
    )
    asked.add_argument(
        "--protocol",
        action="append",
        metavar="NAME",
        help="default, continuation or generate; repeat for several (default: default)",
    )
    asked.add_argument("--limit", type=_whole_number, metavar="N", help="the first N items of each task")
    asked.add_argument(
        "--shots", type=_whole_number, metavar="N", help="few-shot examples (default: the task's own number)"
    )
    asked.add_argument(
        "--seed", type=_whole_number, default=0, metavar="N", help="of few-shot examples and generated items"
    )
    asked.add_argument("--data-dir", metavar="FOLDER", help="folder with TASK/SPLIT.jsonl")
    asked.add_argument("--chat-template", action="store_true", help="put prompts into the model's chat format")

    changed = parser.add_argument_group("what is removed")
    changed.add_argument("--over", default="layers", metavar="PARTS", help="layers, attention, mlp, heads or kv-groups")
    changed.add_argument("--layers", metavar="LIST", help="like 0,10,20-29 (default: all)")
    changed.add_argument("--heads", metavar="LIST", help="like 0-8, for heads and kv-groups (default: all)")
    changed.add_argument(
        "--ablation", metavar="KIND", help="skip, zero, mean or resample (default: skip for layers, else zero)"
    )
    changed.add_argument(
        "--reference",
        default="fewshot",
        metavar="FILE",
        help="text file for mean and resample (default: the task's few-shot examples)",
    )
    changed.add_argument("--mean-mode", default="pooled", metavar="MODE", help="pooled or per_position")

    ran = parser.add_argument_group("how it runs")
    ran.add_argument("--dtype", default="float32", metavar="TYPE", help="float32, bfloat16, float16 or float64")
    ran.add_argument("--device", metavar="DEVICE", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    ran.add_argument("--n-devices", type=_whole_number, metavar="N", help="split the model over N GPUs")
    ran.add_argument("--bos", default="tokenizer", metavar="POLICY", help="tokenizer, always or never")
    ran.add_argument("--executor", default="forked", metavar="NAME", help="how rows are run; the numbers are the same")
    ran.add_argument("--batch-tokens", type=_whole_number, metavar="N", help="tokens in a batch")
    ran.add_argument("--out", metavar="FOLDER", help="run folder (without it nothing is kept)")


def _parser() -> _Parser:
    parser = _Parser(
        prog="lensprune",
        description="Which layers and heads does a language model need, and does the answer depend on how you measure?",
        epilog="lensprune COMMAND --help describes the options of a command.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"lensprune {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> _Parser:
        own = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False)
        own.set_defaults(run=run)
        return own

    command("models", _models, "list the bundled models and what else --model takes")
    command("tasks", _tasks, "list the tasks with their protocols and parameters")
    _add_sweep_options(command("sweep", _sweep, "measure a model with parts of it removed, one at a time"))
    planned = command("plan", _plan, "say what a sweep would cost, from the model's configuration, and run nothing")
    _add_sweep_options(planned)
    planned.add_argument_group("the machine").add_argument(
        "--flops", type=float, metavar="N", help="matrix FLOPs a second, like 400e12 (default: measured here)"
    )
    planned.add_argument("--bandwidth", type=float, metavar="N", help="bytes a second of reading weights, like 3e12")
    heads_command.add_arguments(command("heads", heads_command.run, "measure what each attention head does"))
    resumed = command("resume", _resume, "continue a run where it stopped")
    resumed.add_argument("folder", metavar="FOLDER", help="run folder")
    resumed.add_argument("--executor", metavar="NAME", help="run the missing cells with another executor")
    demo = command(
        "demo", _demo, "remove each layer of the bundled model in turn, on bundled tasks, under three protocols"
    )
    demo.add_argument("--out", default="runs/demo", metavar="FOLDER", help="run folder (default: runs/demo)")
    return parser


def _models(arguments: argparse.Namespace) -> int:
    from lensprune.models import BUNDLED

    for name, model in sorted(BUNDLED.items()):
        print(f"{name}  {model.description}")
    print("Also: a local folder in Hugging Face's layout, a .gguf file, or a hub id such as meta-llama/Llama-3.1-8B.")
    return 0


def _tasks(arguments: argparse.Namespace) -> int:
    from lensprune.report.tables import tasks_table

    print(tasks_table())
    return 0


def _sweep(arguments: argparse.Namespace) -> int:
    if arguments.lm_eval_task:
        return _sweep_lm_eval(arguments)
    from lensprune.sweep.run import sweep

    return _show(sweep(arguments.model, **_sweep_arguments(arguments), command=arguments.command_line))


def _plan(arguments: argparse.Namespace) -> int:
    if arguments.lm_eval_task:
        raise UserError("--lm-eval-task can't be planned: lm-eval builds its prompts only when it runs; use --task")
    from lensprune.planning import plan

    speed = {"flops": arguments.flops, "bandwidth": arguments.bandwidth}
    print(plan(arguments.model, **_sweep_arguments(arguments), **speed))
    return 0


def _sweep_arguments(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of a sweep as keyword arguments of `lensprune.sweep.run.sweep`."""
    if not arguments.task:
        raise UserError("no task is given: --task NAME (lensprune tasks lists them)")
    from lensprune.sweep.selection import VariantSelection

    return {
        "tasks": arguments.task,
        "protocols": arguments.protocol or ["default"],
        "variants": VariantSelection(arguments.over, arguments.ablation, arguments.layers, arguments.heads),
        "limit": arguments.limit,
        "shots": arguments.shots,
        "seed": arguments.seed,
        "data_dir": arguments.data_dir,
        "reference": arguments.reference,
        "mean_mode": arguments.mean_mode,
        "chat_template": arguments.chat_template,
        "dtype": arguments.dtype,
        "device": arguments.device,
        "n_devices": arguments.n_devices,
        "bos": arguments.bos,
        "executor": arguments.executor,
        "batch_tokens": arguments.batch_tokens,
        "out": arguments.out,
    }


def _sweep_lm_eval(arguments: argparse.Namespace) -> int:
    ours = {
        "--task": arguments.task,
        "--protocol": arguments.protocol,
        "--data-dir": arguments.data_dir,
        "--chat-template": arguments.chat_template,
    }
    for option, value in ours.items():
        if value:
            raise UserError(f"{option} means nothing with --lm-eval-task, whose tasks lm-eval defines: leave it out")
    if arguments.limit is not None and arguments.limit < 1:
        raise UserError(f"limit {arguments.limit} is not a number of items: expected 1 or more")
    from lensprune.report.tables import metrics_report
    from lensprune.sweep.lm_eval_tasks import sweep_lm_eval
    from lensprune.sweep.selection import VariantSelection

    table = sweep_lm_eval(
        arguments.model,
        arguments.lm_eval_task,
        VariantSelection(arguments.over, arguments.ablation, arguments.layers, arguments.heads),
        limit=arguments.limit,
        shots=arguments.shots,
        reference=arguments.reference,
        mean_mode=arguments.mean_mode,
        seed=arguments.seed,
        dtype=arguments.dtype,
        device=arguments.device,
        n_devices=arguments.n_devices,
        bos=arguments.bos,
        executor=arguments.executor,
        batch_tokens=arguments.batch_tokens,
        out=arguments.out,
    )
    print(metrics_report(table))
    return 0


def _resume(arguments: argparse.Namespace) -> int:
    from lensprune.sweep.run import resume

    return _show(resume(arguments.folder, executor=arguments.executor))


def _demo(arguments: argparse.Namespace) -> int:
    from lensprune.sweep.demo import demo

    return _show(demo(out=arguments.out))


def _show(run: Any) -> int:
    from lensprune.report.tables import run_report

    print(run_report(run))
    return 0


def _quiet_libraries() -> None:
    """Keep progress bars and notes of other libraries away from standard error, which is for ours."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    _quiet_libraries()
    try:
        parser = _parser()
        commands = [name for action in parser._subparsers._group_actions for name in action.choices]  # type: ignore
        if given and not given[0].startswith("-") and given[0] not in commands:
            raise unknown_name("command", given[0], commands)
        arguments = parser.parse_args(given)
        if arguments.command is None:
            parser.print_help()
            return 0
        arguments.command_line = shlex.join(["lensprune", *given])
        code: int = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"lensprune: error: {_one_line(str(error))}", file=sys.stderr)
        return 2
    except LensPruneError as error:
        print(f"lensprune: {type(error).__name__}: {_one_line(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print(f"lensprune: {_one_line(str(stop)) or 'stopped'}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read our output is gone (``lensprune tasks | head``); what is buffered can't be flushed at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
