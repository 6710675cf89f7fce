"""Column names and jinja2 templates as functions of a row, with lm-eval's reading of the result."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Sequence
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lensprune.errors import UserError
from lensprune.tasks.base import Doc

__all__ = ["choices_of", "target_of", "text_of"]


def _regex_replace(text: str, pattern: str, replacement: str, count: int = 0) -> str:
    return re.sub(pattern, replacement, text, count=count)


# A task file may come from anywhere, so its templates see the row and nothing of Python.
_ENVIRONMENT = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
_ENVIRONMENT.filters["regex_replace"] = _regex_replace


def _renderer(source: str, where: str) -> Callable[[Doc], str]:
    try:
        template = _ENVIRONMENT.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"{where}: not a template ({error.message}): {source!r}") from None

    def render(doc: Doc) -> str:
        try:
            return template.render(**doc)
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
            raise ValueError(f"{where}: {error}") from error

    return render


def text_of(source: str, where: str) -> Callable[[Doc], str]:
    """The column called `source` if a row has one, else the template `source`.

    Args:
        where: names the file and field in errors.

    Raises:
        UserError: `source` is not a valid template. The returned function raises ``ValueError`` for a row that the
            template does not fit.
    """
    render = _renderer(source, where)
    return lambda doc: str(doc[source]) if source in doc else render(doc)


def choices_of(source: str | Sequence[str], where: str) -> Callable[[Doc], list[str]]:
    """A fixed list, a column that holds a list, or a template that renders one.

    Raises:
        UserError: as `text_of`.
    """
    if not isinstance(source, str):
        fixed = [str(choice) for choice in source]
        return lambda doc: list(fixed)
    render = _renderer(source, where)

    def choices(doc: Doc) -> list[str]:
        value = doc[source] if source in doc else _literal(render(doc), where)
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise ValueError(f"{where}: expected a list of options, got {value!r}")
        return [str(choice) for choice in value]

    return choices


def _literal(text: str, where: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"{where}: {text!r} is not a list") from error


def target_of(source: str | int, where: str) -> Callable[[Doc], str | int]:
    """The right option's index or text, or the answer's text: a number, a column or a template.

    A rendered text of digits is an index only for a task with options; `index_of_target` decides that.

    Raises:
        UserError: as `text_of`.
    """
    if isinstance(source, int):
        return lambda doc: source
    render = _renderer(source, where)

    def target(doc: Doc) -> str | int:
        value = doc[source] if source in doc else render(doc)
        return value if isinstance(value, int) and not isinstance(value, bool) else str(value)

    return target
