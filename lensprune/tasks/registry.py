"""Tasks by name: one decorated function per task, imported lazily, with parameters in square brackets."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar, overload

from lensprune.errors import UserError, unknown_name
from lensprune.parameters import parse_spec, read_values
from lensprune.tasks.base import Task

__all__ = ["get_task", "register_task", "task_names"]

Builder = Callable[..., Task]
B = TypeVar("B", bound=Builder)

_BUILT_IN_MODULES = (
    "lensprune.tasks.arc",
    "lensprune.tasks.boolq",
    "lensprune.tasks.bundled",
    "lensprune.tasks.commonsense_qa",
    "lensprune.tasks.gsm8k",
    "lensprune.tasks.hellaswag",
    "lensprune.tasks.kv_retrieval",
    "lensprune.tasks.mathqa",
    "lensprune.tasks.mmlu",
    "lensprune.tasks.openbookqa",
    "lensprune.tasks.svamp",
    "lensprune.tasks.winogrande",
)
_NAME = re.compile(r"[A-Za-z0-9_.\-]+")

_builders: dict[str, Builder] = {}
_imported: set[str] = set()


def _import_built_in() -> None:
    # Marked before the import, because a task module may itself look up another task.
    for module in _BUILT_IN_MODULES:
        if module not in _imported:
            _imported.add(module)
            importlib.import_module(module)


@overload
def register_task(builder: B) -> B: ...
@overload
def register_task(*, name: str) -> Callable[[B], B]: ...
def register_task(builder: B | None = None, *, name: str | None = None) -> B | Callable[[B], B]:
    """Register the decorated function, which returns a `Task`, under a name.

    The function's keyword parameters, all with a default, are the task's parameters: ``my_task[pairs=10]`` calls
    ``my_task(pairs=10)``. Values are converted by annotation (``int``, ``float``, ``bool``, ``str``,
    ``Literal[...]`` and unions of these). Rerunning a notebook cell replaces the task.

    Args:
        builder: the function.
        name: the task's name; ``None`` takes the function's name.

    Raises:
        UserError: the name is taken by another function or contains characters other than letters, digits and
            ``_.-``; a parameter lacks a default.

    Examples:
        >>> from dataclasses import replace
        >>> @lp.register_task
        ... def easy_facts():
        ...     return replace(lp.get_task("facts"), name="easy_facts", summary="the bundled facts, renamed")
        >>> lp.get_task("easy_facts").name
        'easy_facts'
    """
    if builder is None:
        return lambda function: _register(function, name or function.__name__)
    return _register(builder, name or builder.__name__)


def _register(builder: B, name: str) -> B:
    if not _NAME.fullmatch(name):
        raise UserError(f"task name {name!r}: use letters, digits and _ . - only")
    for parameter in inspect.signature(builder).parameters.values():
        if parameter.default is parameter.empty:
            raise UserError(f"task {name!r}: parameter {parameter.name!r} needs a default value")
    known = _builders.get(name)
    if known is not None and (known.__module__, known.__qualname__) != (builder.__module__, builder.__qualname__):
        raise UserError(f"task name {name!r} is taken by {known.__module__}.{known.__qualname__}; choose another name")
    _builders[name] = builder
    return builder


def task_names() -> list[str]:
    """Names of all registered tasks, sorted.

    Examples:
        >>> "facts" in lp.task_names()
        True
    """
    _import_built_in()
    return sorted(_builders)


def get_task(spec: str) -> Task:
    """Return the task called `spec`, with its parameters.

    The returned task's name includes the parameters that differ from their defaults, in the order of the signature,
    so that two settings of one task never share a name; so does the name of its closed-book task.

    Args:
        spec: ``name`` or ``name[key=value,...]``.

    Raises:
        UserError: unknown task or parameter (with the nearest names), or a value of the wrong kind.

    Examples:
        >>> lp.get_task("kv_retrieval[pairs=4]").parameters["pairs"]
        4
    """
    name, given = parse_spec(spec, "task")
    _import_built_in()
    if name not in _builders:
        raise unknown_name("task", name, _builders)
    builder = _builders[name]
    signature = inspect.signature(builder).parameters
    values = read_values(builder, signature, given, f"task {name!r}")
    resolved = {key: values.get(key, parameter.default) for key, parameter in signature.items()}
    shown = ",".join(f"{key}={value}" for key, value in resolved.items() if value != signature[key].default)
    setting = f"[{shown}]" if shown else ""
    task = builder(**values)
    return replace(
        task,
        name=name + setting,
        closed_book=None if task.closed_book is None else task.closed_book + setting,
        parameters={**resolved, **task.parameters},
    )
