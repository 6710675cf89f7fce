"""``lensprune completion``: a script with which the shell completes commands, options and names."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence

from lensprune.errors import UserError, unknown_name

__all__ = ["SHELLS", "add_arguments", "run"]

SHELLS = ("bash", "zsh", "tcsh")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("shell", metavar="SHELL", help=f"{', '.join(SHELLS)}; needs the completion extra")


def run(build: Callable[[], argparse.ArgumentParser], arguments: argparse.Namespace) -> int:
    """Print the script.

    Args:
        build: the whole command line.

    Raises:
        UserError: another shell, or shtab is not installed.
    """
    if arguments.shell not in SHELLS:
        raise unknown_name("shell", arguments.shell, SHELLS)
    try:
        import shtab
    except ModuleNotFoundError:
        raise UserError("completion needs shtab: pip install 'lensprune[completion]'") from None
    parser, names = build(), _names()
    for action in _actions(parser):
        metavar = str(action.metavar)
        if action.dest in names and action.choices is None:
            action.choices = names[action.dest]
        elif metavar in ("FOLDER", "OTHER"):
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        elif metavar == "FILE":
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    print(shtab.complete(parser, shell=arguments.shell))
    return 0


def _names() -> dict[str, Sequence[str]]:
    """Values to complete, by option: names that are known without a model."""
    from lensprune.ablation.choices import over_words
    from lensprune.ablation.kinds import ablation_kinds
    from lensprune.engine.registry import executor_names
    from lensprune.models.sources.bundled import BUNDLED
    from lensprune.protocols.registry import protocol_names
    from lensprune.tasks import task_names

    return {
        "ablation": list(ablation_kinds()),
        "executor": executor_names(),
        "model": sorted(BUNDLED),
        "over": over_words(),
        "protocol": protocol_names(),
        "shell": SHELLS,
        "task": task_names(),
    }


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from _actions(inner)
