"""Function calls as text: ``name[key=value,key=value]``, with each value parsed by its parameter's annotation."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Callable, Mapping
from inspect import Parameter
from typing import Any, Literal

from lensprune.errors import UserError, unknown_name

__all__ = ["parse_spec", "read_values"]

_SPEC = re.compile(r"(?P<name>[^\[\]]*)(?:\[(?P<parameters>[^\[\]]*)\])?")


def parse_spec(spec: str, what: str) -> tuple[str, dict[str, str]]:
    """Split ``name[key=value,key=value]`` into the name and the parameters as text.

    Args:
        what: what the name means, in messages.

    Raises:
        UserError: the text has another form, or gives a parameter twice.
    """
    match = _SPEC.fullmatch(spec.strip())
    if match is None or not match["name"].strip():
        raise UserError(f"{what} {spec!r}: expected NAME or NAME[key=value,key=value]")
    parameters: dict[str, str] = {}
    for part in (match["parameters"] or "").split(","):
        if not part.strip():
            continue
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not (key and equals and value):
            raise UserError(f"{what} {spec!r}: {part.strip()!r} is not of the form key=value")
        if key in parameters:
            raise UserError(f"{what} {spec!r}: parameter {key!r} is given twice")
        parameters[key] = value
    return match["name"].strip(), parameters


def read_values(
    function: Callable[..., Any], parameters: Mapping[str, Parameter], given: Mapping[str, str], owner: str
) -> dict[str, Any]:
    """Parse values for some of the `parameters` of a function.

    They are converted by annotation: ``int``, ``float``, ``bool``, ``str``, ``Literal[...]`` and unions of these;
    without an annotation, by the type of the default.

    Args:
        owner: names the function in messages, like ``task 'facts'``.

    Raises:
        UserError: a parameter that the function lacks (with the nearest names), or a value of the wrong kind.
    """
    values: dict[str, Any] = {}
    if not given:
        return values
    try:
        hints = typing.get_type_hints(function)
    except NameError as error:
        raise UserError(
            f"{owner}: its annotation {error.name!r} can't be resolved: import it outside of TYPE_CHECKING"
        ) from None
    for key, text in given.items():
        if key not in parameters:
            if not parameters:
                raise UserError(f"{owner} has no parameters, so {key!r} cannot be set")
            raise unknown_name(f"parameter of {owner}", key, parameters)
        default = parameters[key].default
        guessed = type(default) if isinstance(default, (bool, int, float)) else str
        values[key] = _convert(text, hints.get(key, guessed), f"{owner}: parameter {key!r}")
    return values


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
