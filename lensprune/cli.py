"""The command line: reads arguments, calls one public function, and prints what it returns.

Invalid input ends in one line on standard error and exit code 2; Ctrl-C in exit code 130 and a line that
says how to resume. Libraries that take seconds to import are imported by the commands that need them.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from lensprune.commands import analyse as analyse_command
from lensprune.commands import attribute as attribute_command
from lensprune.commands import completion as completion_command
from lensprune.commands import delta as delta_command
from lensprune.commands import fidelity as fidelity_command
from lensprune.commands import heads as heads_command
from lensprune.commands import noise as noise_command
from lensprune.commands import paper as paper_command
from lensprune.commands import power as power_command
from lensprune.commands import primitives as primitives_command
from lensprune.commands import removal as removal_command
from lensprune.commands import report as report_command
from lensprune.commands import runs as runs_command
from lensprune.commands.examples import examples_of
from lensprune.commands.options import add_json, add_sweep_options
from lensprune.cores import use_free_cores
from lensprune.errors import LensPruneError, UserError, unknown_name
from lensprune.sweeps.options import (
    Execution,
    Items,
    Loading,
    Reference,
    Splitting,
    SweepOptions,
    Workers,
    add_options,
    decimal,
    flag_of,
    given_options,
    option_values,
)
from lensprune.terminal import lasting_streams, stage
from lensprune.version import __version__

if TYPE_CHECKING:
    from lensprune.sweeps.selection import VariantSelection

__all__ = ["main"]

_Run = Callable[[argparse.Namespace], int]
_LONGEST_MESSAGE = 600
_REQUIRED = "the following arguments are required: "
_COMPUTING = (
    "attribute", "delta", "demo", "fidelity", "heads", "noise", "paper", "plan", "primitives", "removal", "resume",
    "sweep",
)  # fmt: skip
"""Commands that run a model, or measure how fast one would run."""


class _Parser(argparse.ArgumentParser):
    """Reports a wrong argument like any other invalid input, without the usage text."""

    def error(self, message: str) -> NoReturn:
        missing = message.removeprefix(_REQUIRED)
        if missing == message:
            raise UserError(message)
        names = missing.split(", ")
        helps = {name: action.help for action in self._actions for name in (action.metavar, *action.option_strings)}
        raise UserError("; ".join(f"{name} is missing: {helps[name]}" for name in names))


def _one_line(message: str) -> str:
    line = "".join(c if c.isprintable() else " " for c in " ".join(message.split()))
    return line if len(line) <= _LONGEST_MESSAGE else f"{line[:_LONGEST_MESSAGE]}..."


def _parser() -> _Parser:
    parser = _Parser(
        prog="lensprune",
        description="Which layers and heads does a language model need, and does the answer depend on how you measure?",
        epilog="Run lensprune COMMAND --help for a command's options.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"lensprune {__version__}")
    commands = parser.add_subparsers(dest="subcommand", metavar="COMMAND", parser_class=_Parser)

    def command(name: str, run: _Run, text: str) -> _Parser:
        subparser = commands.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog=examples_of(name),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        subparser.set_defaults(run=run)
        return subparser

    for name, run, text, add_arguments in _commands():
        add_arguments(command(name, run, text))
    return parser


def _commands() -> list[tuple[str, _Run, str, Callable[[argparse.ArgumentParser], None]]]:
    """Each command: its name, what runs it, its help, and what adds its arguments; in the order of the help."""
    modules = {
        "heads": (heads_command, "measure what each attention head does"),
        "removal": (
            removal_command,
            "measure accuracy as heads are removed in the order of rankings, next to random orders",
        ),
        "delta": (
            delta_command,
            "exchange weights between a base and a distilled model, and measure which ones carry the gain",
        ),
        "attribute": (attribute_command, "attribute a task's answers to heads, edges and paths"),
        "fidelity": (fidelity_command, "measure how well the model's own answers survive without each part"),
        "noise": (noise_command, "rerun the clean model with other settings, and count the items that flip"),
        "power": (power_command, "compute the smallest loss that a sweep can detect, without running it"),
        "primitives": (primitives_command, "find the roles of heads and MLPs while a model solves sums step by step"),
        "paper": (paper_command, "run a whole study of depth: several sweeps, and one page about all of them"),
        "analyse": (analyse_command, "print an analysis of a run, and write its table and figure"),
        "report": (report_command, "write a run as an HTML page, or compare two runs"),
        "runs": (runs_command, "list the runs in a folder, with their progress"),
    }
    demo = "remove each layer of the bundled model in turn, on three bundled tasks, under two protocols"
    return [
        ("models", _models, "list the bundled models, and what else --model accepts", add_json),
        ("tasks", _tasks, "list the tasks with their protocols and parameters", add_json),
        ("sweep", _sweep, "measure accuracy with one part of the model removed at a time", _add_sweep),
        ("plan", _plan, "estimate what a sweep would cost, from the model's configuration alone", _add_plan),
        *((name, module.run, text, module.add_arguments) for name, (module, text) in modules.items()),
        ("resume", _resume, "resume a run", _add_resume),
        ("demo", _demo, demo, _add_demo),
        (
            "completion",
            partial(completion_command.run, _parser),
            "print a script for shell completion",
            completion_command.add_arguments,
        ),
    ]


def _add_sweep(swept: argparse.ArgumentParser) -> None:
    add_sweep_options(swept)
    add_json(swept)


def _add_plan(planned: argparse.ArgumentParser) -> None:
    add_sweep_options(planned)
    planned.add_argument_group("the machine").add_argument(
        "--flops",
        type=decimal,
        metavar="N",
        help="matrix-product FLOP/s, like 400e12 (default: measured on this machine)",
    )
    planned.add_argument(
        "--bandwidth", type=decimal, metavar="N", help="memory bandwidth for reading weights, in bytes/s, like 3e12"
    )
    add_json(planned)


def _add_resume(resumed: argparse.ArgumentParser) -> None:
    resumed.add_argument("folder", metavar="FOLDER", help="run folder")
    resumed.add_argument("--executor", metavar="NAME", help="run the missing cells with this executor")
    add_options(resumed, Workers)
    add_json(resumed)


def _add_demo(demo: argparse.ArgumentParser) -> None:
    demo.add_argument("--out", default="runs/demo", metavar="FOLDER", help="run folder (default: runs/demo)")
    add_json(demo)


def _models(arguments: argparse.Namespace) -> int:
    from lensprune.models import BUNDLED

    if arguments.json:
        rows = [{"model": name, "description": model.description} for name, model in sorted(BUNDLED.items())]
        print(json.dumps(rows, indent=1))
        return 0
    for name, model in sorted(BUNDLED.items()):
        print(f"{name}  {model.description}")
    print("Also: a local folder in Hugging Face's layout, a .gguf file, or a hub id such as meta-llama/Llama-3.1-8B.")
    return 0


def _tasks(arguments: argparse.Namespace) -> int:
    from lensprune.commands.lists import tasks_json, tasks_table

    print(tasks_json() if arguments.json else tasks_table())
    return 0


def _sweep(arguments: argparse.Namespace) -> int:
    if arguments.lm_eval_task:
        return _sweep_lm_eval(arguments)
    values = _sweep_arguments(arguments)
    from lensprune.sweeps.run import sweep

    return _show(sweep(arguments.model, **values, command=arguments.command_line), arguments)


def _plan(arguments: argparse.Namespace) -> int:
    if arguments.lm_eval_task:
        raise UserError("--lm-eval-task can't be planned: lm-eval builds its prompts only when it runs; use --task")
    values = _sweep_arguments(arguments)
    from lensprune.output.tables import frame_json
    from lensprune.planning import plan

    with stage("counting tokens and memory", shown=True):
        planned = plan(arguments.model, **values, flops=arguments.flops, bandwidth=arguments.bandwidth)
    print(frame_json(planned.table()) if arguments.json else planned)
    return 0


def _check_models(arguments: argparse.Namespace) -> None:
    """Reject unknown model names before importing the libraries that load models."""
    from lensprune.models.sources.resolve import model_kind

    for option in ("model", "base", "distilled"):
        name = getattr(arguments, option, None)
        if name is not None:
            model_kind(name)


def _selection(arguments: argparse.Namespace) -> VariantSelection:
    from lensprune.sweeps.selection import VariantSelection

    chosen = arguments.layers, arguments.heads, arguments.at, arguments.source
    return VariantSelection(arguments.over, arguments.ablation, *chosen)


def _sweep_arguments(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of a sweep as keyword arguments of `lensprune.sweep`.

    Invalid options and unknown names of models and tasks are reported here, before torch is imported.
    """
    if not arguments.task:
        raise UserError("no task given: use --task NAME (lensprune tasks lists them)")
    from lensprune.tasks import find_task

    values = {
        "tasks": arguments.task,
        "protocols": arguments.protocol or ["default"],
        "variants": _selection(arguments),
        **option_values(arguments, SweepOptions),
    }
    SweepOptions.given(**values)
    for name in arguments.task:
        find_task(name)
    return {**values, "out": arguments.out}


def _sweep_lm_eval(arguments: argparse.Namespace) -> int:
    groups = (Items, Reference, Loading, Splitting, Execution)
    used = option_values(arguments, *groups)
    ours = {"--task": arguments.task, "--protocol": arguments.protocol} | {
        flag_of(option): value
        for option in fields(SweepOptions)
        if option.name not in used and (value := given_options(arguments, SweepOptions).get(option.name))
    }
    for flag, value in ours.items():
        if value:
            raise UserError(f"{flag} has no effect with --lm-eval-task, whose tasks lm-eval defines: leave it out")
    for group in groups:
        group(**option_values(arguments, group))
    from lensprune.adapters.lm_eval_sweep import sweep_lm_eval
    from lensprune.output.tables import frame_json, metrics_report

    table = sweep_lm_eval(
        arguments.model,
        arguments.lm_eval_task,
        _selection(arguments),
        **used,
        out=arguments.out,
    )
    print(frame_json(table) if arguments.json else metrics_report(table))
    return 0


def _resume(arguments: argparse.Namespace) -> int:
    from lensprune.runs.folder import read_spec

    replaced = read_spec(Path(arguments.folder)).replaces_weights
    from lensprune.sweeps.run import resume

    if replaced:
        from lensprune.replacement import ReplacementRun
        from lensprune.replacement.text import replacement_report

        print(replacement_report(ReplacementRun.load(arguments.folder), as_json=arguments.json))
        return 0
    run = resume(arguments.folder, executor=arguments.executor, **option_values(arguments, Workers))
    return _show(run, arguments)


def _demo(arguments: argparse.Namespace) -> int:
    from lensprune.sweeps.demo import demo

    return _show(demo(out=arguments.out), arguments)


def _show(run: Any, arguments: argparse.Namespace) -> int:
    from lensprune.output.tables import frame_json
    from lensprune.results.text import run_report

    print(frame_json(run.summary()) if arguments.json else run_report(run))
    return 0


def _quiet_libraries() -> None:
    """Keep other libraries' progress bars and messages off standard error."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Losing the terminal never stops the work. Errors on standard error are ignored; failing to write standard output is
    an error, unless its reader closed it (``lensprune tasks | head``).
    """
    given = list(sys.argv[1:] if argv is None else argv)
    _quiet_libraries()
    with lasting_streams() as (out, _):
        code = _run(given)
        out.flush()
        if out.failure is None or isinstance(out.failure, BrokenPipeError):
            return code
        reason = getattr(out.failure, "strerror", None) or str(out.failure)
        print(f"lensprune: standard output could not be written ({_one_line(reason)})", file=sys.stderr)
        return code or 1


def _commands_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parser of each command."""
    return {name: inner for action in parser._subparsers._group_actions for name, inner in action.choices.items()}  # type: ignore


def _check_flags(command: str, parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Reject unknown options, with the nearest, and two options that set the same value.

    argparse first reports what is missing, suggests nothing, and lets the last of two options win.
    """
    known, used = parser._option_string_actions, dict[str, str]()
    for word in words:
        flag = word.partition("=")[0]
        if not flag.startswith("--") or flag == "--" or " " in flag:
            continue
        if flag not in known:
            raise unknown_name(f"option of {command}", flag, [name for name in known if name.startswith("--")])
        other = used.setdefault(known[flag].dest, flag)
        if other != flag:
            raise UserError(f"{other} can't be combined with {flag}: leave one of them out")


def _run(given: Sequence[str]) -> int:
    try:
        parser = _parser()
        commands = list(_commands_of(parser))
        if given and not given[0].startswith("-") and given[0] not in commands:
            raise unknown_name("command", given[0], commands)
        lost = next((word for word in given if word.endswith("=--")), None)
        if lost is not None:
            # argparse takes these hyphens for the end of the options, and would return a list.
            raise UserError(f"{lost.removesuffix('=--')} has no usable value: '--' is not one")
        if given and given[0] in commands:
            _check_flags(given[0], _commands_of(parser)[given[0]], given[1:])
        arguments = parser.parse_args(given)
        if arguments.subcommand is None:
            parser.print_help()
            return 0
        arguments.command_line = shlex.join(["lensprune", *given])
        _check_models(arguments)
        if arguments.subcommand in _COMPUTING and (note := use_free_cores()) is not None:
            print(f"lensprune: {note}", file=sys.stderr)
        return int(arguments.run(arguments))
    except UserError as error:
        print(f"lensprune: error: {_one_line(str(error))}", file=sys.stderr)
        return 2
    except LensPruneError as error:
        print(f"lensprune: {type(error).__name__}: {_one_line(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print(f"lensprune: {_one_line(str(stop)) or 'stopped: rerun the command to resume'}", file=sys.stderr)
        return 130
