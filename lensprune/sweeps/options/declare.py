"""Declare options, check them, and turn them into command-line arguments."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_type_hints

from lensprune.errors import UserError, unknown_name
from lensprune.registry import in_words

Check = Callable[[Any], None]


def whole_number(text: str) -> int:
    """Parse a whole number from the command line; decimals and exponents are rejected."""
    digits = text.strip()
    if not digits.removeprefix("-").isdecimal() or len(digits) > 18:
        raise argparse.ArgumentTypeError(f"expected a whole number, not {text!r}")
    return int(digits)


def decimal(text: str) -> float:
    """Parse a decimal from the command line."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number like 0.1, not {text!r}") from None


def option(
    default: Any,
    help: str | Callable[[], str],
    *,
    metavar: str | tuple[str, ...] | None = None,
    parse: Callable[[str], Any] = str,
    check: Check | None = None,
    flag: str | None = None,
    action: type[argparse.Action] | None = None,
    repeated: bool = False,
) -> Any:
    """A field of a group.

    Args:
        help: one phrase for the command line, or a function that returns it, for names that can be registered later;
            `add_options` appends the default if it is a value.
        metavar: name of the value, or of each of several values, in the help; ``None`` for a flag.
        parse: converts the command line's text.
        check: raises `UserError` for an invalid value; ``None`` values are not checked.
        flag: name on the command line, if it is not the field's name.
        action: argparse action for an option that can be repeated.
        repeated: the argument may be given several times, and the value is a tuple.
    """
    declared = {
        "help": help,
        "metavar": metavar,
        "parse": parse,
        "check": check,
        "flag": flag,
        "action": action,
        "repeated": repeated,
    }
    return field(default=default, metadata=declared)


def between(low: int, high: int, what: str, unit: str) -> Check:
    """A check that a number of things is within a range, both ends included."""

    def check(value: int) -> None:
        if not low <= value <= high:
            raise UserError(f"{what} {value} is not a usable number of {unit}: expected {low} to {high}")

    return check


def within(low: float, high: float, what: str, *, above: bool = False) -> Check:
    """A check that a decimal is within a range, both ends included, or excluding the low end (`above`)."""

    def check(value: float) -> None:
        if not (low < value <= high if above else low <= value <= high):
            start = f"above {low:g}" if above else f"{low:g}"
            raise UserError(f"{what} {value:g} is not possible: expected a number from {start} to {high:g}")

    return check


def one_of(names: tuple[str, ...], what: str) -> Check:
    """A check that a name is one of `names`."""

    def check(value: str) -> None:
        if value not in names:
            raise unknown_name(what, value, names)

    return check


@dataclass(frozen=True, kw_only=True)
class Group:
    """Base class of all groups: building one checks its values.

    Raises:
        UserError: an invalid value, or one of another type than declared, if that is a number, text or flag.
    """

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for declared in fields(self):
            check, value = declared.metadata.get("check"), getattr(self, declared.name)
            value = _of_type(declared.name, value, hints[declared.name])
            # Numbers of other libraries are numbers, but can't be written as JSON.
            object.__setattr__(self, declared.name, value)
            if check is not None and value is not None:
                check(value)


_SIMPLE: dict[type, tuple[type, str]] = {
    bool: (bool, "True or False"),
    int: (Integral, "a whole number"),
    float: (Real, "a number"),
    str: (str, "text"),
    Path: (PathLike, "a path"),
    NoneType: (NoneType, "nothing"),
}
"""Types of options whose values are checked, what counts as one, and its name in a message."""


def _of_type(name: str, value: Any, hint: Any) -> Any:
    """The value, numbers as Python's own; `UserError` for one of a type that isn't declared.

    Containers and other classes are not checked.
    """
    declared = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    if not all(kind in _SIMPLE for kind in declared):
        return value
    # Python's True is a whole number.
    possible = [kind for kind in declared if (kind is bool) == isinstance(value, bool)]
    of = [kind for kind in possible if isinstance(value, _SIMPLE[kind][0])]
    if not of:
        expected = in_words([_SIMPLE[kind][1] for kind in declared if kind is not NoneType])
        raise UserError(f"{name} {value!r} is of type {type(value).__name__}: expected {expected}")
    return of[0](value) if of[0] in (int, float) else value


def help_of(declared: Field[Any]) -> str:
    """An option's help text."""
    text = declared.metadata["help"]
    return str(text() if callable(text) else text)


def flag_of(declared: Field[Any]) -> str:
    """An option's flag on the command line."""
    return str(declared.metadata["flag"] or f"--{declared.name.replace('_', '-')}")


def add_options(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup, *groups: type[Group], **defaults: object
) -> None:
    """Add an argument for every field of `groups`; `defaults` replaces some defaults for this command.

    A field that two groups declare is added once, as declared by the last one.
    """
    declared = {declaration.name: declaration for group in groups for declaration in fields(group)}
    for name, declaration in declared.items():
        default = defaults.get(name, declaration.default)
        # argparse expands percent signs.
        text = help_of(declaration).replace("%", "%%")
        if isinstance(default, (int, float, str)) and not isinstance(default, bool) and "(default" not in text:
            text = f"{text} (default: {default})"
        elif name in defaults:
            text = f"{text.partition(' (default')[0]} (default: {default})"
        flag, metavar, action = flag_of(declaration), declaration.metadata["metavar"], declaration.metadata["action"]
        more: dict[str, Any] = {"default": default}
        if declaration.metadata["repeated"]:
            more = {"action": "append", "default": None}
        elif action is not None:
            more["action"] = action
        elif isinstance(metavar, tuple):
            more["nargs"] = len(metavar)
        if metavar is None:
            parser.add_argument(flag, action="store_true", default=default, help=text)
        else:
            parser.add_argument(flag, dest=name, type=declaration.metadata["parse"], metavar=metavar, help=text, **more)


def option_values(given: Any, *groups: type[Group]) -> dict[str, Any]:
    """Values of the options of `groups` among `given`: parsed arguments, a function's ``locals()`` or other options."""
    values = given if isinstance(given, Mapping) else vars(given)
    names = {declaration.name for group in groups for declaration in fields(group)}
    return {name: value for name, value in values.items() if name in names}


def given_options(options: Any, *groups: type[Group]) -> dict[str, Any]:
    """Those of `option_values` that are not the default."""
    defaults = {declaration.name: declaration.default for group in groups for declaration in fields(group)}
    values = option_values(options, *groups)
    return {name: value for name, value in values.items() if value not in (None, defaults[name])}
