"""Tasks by name: one decorated function a task, found lazily, with parameters in square brackets."""

from __future__ import annotations

import importlib
import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal, TypeVar, overload

from lensprune.errors import UserError, unknown_name
from lensprune.tasks.base import Task

__all__ = ["get_task", "parse_spec", "register_task", "task_names"]

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
_SPEC = re.compile(r"(?P<name>[^\[\]]*)(?:\[(?P<parameters>[^\[\]]*)\])?")

_builders: dict[str, Builder] = {}
_imported: set[str] = set()


def _import_built_in() -> None:
    # Marked before the import, because a task module may itself ask the registry for another task.
    for module in _BUILT_IN_MODULES:
        if module not in _imported:
            _imported.add(module)
            importlib.import_module(module)


@overload
def register_task(builder: B) -> B: ...
@overload
def register_task(*, name: str) -> Callable[[B], B]: ...
def register_task(builder: B | None = None, *, name: str | None = None) -> B | Callable[[B], B]:
    """Decorator: make the `Task` that a function returns known by the function's name (or by `name`).

    The function's keyword parameters, all with a default, are the task's parameters: ``my_task[pairs=10]`` calls
    ``my_task(pairs=10)``. Values are converted by annotation (``int``, ``float``, ``bool``, ``str``,
    ``Literal[...]`` and unions of these). Running the same cell of a notebook twice replaces the task.

    Raises:
        UserError: the name is taken by another function or holds characters other than letters, digits and ``_.-``;
            a parameter lacks a default.
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
    """Names of all registered tasks, sorted."""
    _import_built_in()
    return sorted(_builders)


def parse_spec(spec: str) -> tuple[str, dict[str, str]]:
    """Split ``name[key=value,key=value]`` into the name and the parameters as text.

    Raises:
        UserError: the text has another form, or gives a parameter twice.
    """
    match = _SPEC.fullmatch(spec.strip())
    if match is None or not match["name"].strip():
        raise UserError(f"task {spec!r}: expected NAME or NAME[key=value,key=value]")
    parameters: dict[str, str] = {}
    for part in (match["parameters"] or "").split(","):
        if not part.strip():
            continue
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not (key and equals and value):
            raise UserError(f"task {spec!r}: {part.strip()!r} is not of the form key=value")
        if key in parameters:
            raise UserError(f"task {spec!r}: parameter {key!r} is given twice")
        parameters[key] = value
    return match["name"].strip(), parameters


def get_task(spec: str) -> Task:
    """Return the task called `spec`, which is a name or ``name[key=value,...]``.

    The returned task's name holds the parameters that differ from their defaults, in the order of the signature,
    so that two settings of one task never share a name.

    Raises:
        UserError: unknown task or parameter (with the nearest names), or a value of the wrong kind.
    """
    name, given = parse_spec(spec)
    _import_built_in()
    if name not in _builders:
        raise unknown_name("task", name, _builders)
    builder = _builders[name]
    signature = inspect.signature(builder).parameters
    hints = typing.get_type_hints(builder)
    values: dict[str, Any] = {}
    for key, text in given.items():
        if key not in signature:
            if not signature:
                raise UserError(f"task {name!r} has no parameters, so {key!r} cannot be set")
            raise unknown_name(f"parameter of task {name!r}", key, signature)
        values[key] = _convert(text, hints.get(key, str), f"task {name!r}: parameter {key!r}")
    resolved = {key: values.get(key, parameter.default) for key, parameter in signature.items()}
    shown = [f"{key}={value}" for key, value in resolved.items() if value != signature[key].default]
    task = builder(**values)
    return replace(
        task,
        name=f"{name}[{','.join(shown)}]" if shown else name,
        parameters={**resolved, **task.parameters},
    )


def _convert(text: str, hint: Any, where: str) -> Any:
    options = _alternatives(hint)
    for option in options:
        converted = _convert_one(text, option)
        if converted is not None:
            return converted
    raise UserError(f"{where}: {text!r} is not {' or '.join(_describe(option) for option in options)}")


def _alternatives(hint: Any) -> tuple[Any, ...]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(option for option in typing.get_args(hint) if option is not type(None))
    return (hint,)


def _convert_one(text: str, hint: Any) -> Any:
    if typing.get_origin(hint) is Literal:
        return next((value for value in typing.get_args(hint) if str(value) == text), None)
    if hint is bool:
        words: Mapping[str, bool] = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        return words.get(text.lower())
    if hint is int:
        return int(text) if re.fullmatch(r"[+-]?\d+", text) else None
    if hint is float:
        try:
            return float(text)
        except ValueError:
            return None
    return text


def _describe(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(str(value) for value in typing.get_args(hint))
    return {bool: "true or false", int: "a whole number", float: "a number"}.get(hint, "text")
