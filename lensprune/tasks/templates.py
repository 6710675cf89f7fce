"""Column names and jinja2 templates as functions of a row, with the result interpreted as in lm-eval."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lensprune.errors import UserError
from lensprune.tasks.base import Doc
from lensprune.tasks.nulls import Null, is_null, null_error

__all__ = ["choices_of", "is_index", "target_of", "text_of"]


def _regex_replace(text: str, pattern: str, replacement: str, count: int = 0) -> str:
    return re.sub(pattern, replacement, text, count=count)


def _shown(value: Any) -> Any:
    if is_null(value):
        raise null_error("a value in the template")
    return value


# A task file may come from anywhere, so its templates see the row and no Python objects.
_ENVIRONMENT = ImmutableSandboxedEnvironment(
    undefined=jinja2.StrictUndefined, keep_trailing_newline=True, finalize=_shown
)
_ENVIRONMENT.filters["regex_replace"] = _regex_replace
_ENVIRONMENT.tests["none"] = lambda value: value is None or isinstance(value, Null)


def _renderer(source: str, where: str) -> Callable[[Doc], str]:
    try:
        template = _ENVIRONMENT.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"{where}: not a template ({error.message}): {source!r}") from None

    def render(doc: Doc) -> str:
        try:
            return template.render({name: Null(name) if is_null(value) else value for name, value in doc.items()})
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
            raise ValueError(f"{where}: {error}") from error

    return render


def text_of(source: str, where: str) -> Callable[[Doc], str]:
    """The column called `source` if a row has one, else the template `source`.

    Args:
        where: names the file and field in errors.

    Raises:
        UserError: `source` is not a valid template. The returned function raises ``ValueError`` for a row that the
            template does not fit, or whose column is null or not text.
    """
    render = _renderer(source, where)

    def text(doc: Doc) -> str:
        if source not in doc:
            return render(doc)
        value = doc[source]
        if is_null(value):
            raise null_error(f"column {source!r}")
        if isinstance(value, (Mapping, list, tuple)):
            raise ValueError(f"{where}: column {source!r} holds {value!r}, expected text")
        return str(value)

    return text


def is_index(source: str, text: str, doc: Doc) -> bool:
    """Whether lm-eval would read `text`, the result of `text_of` for a task with options, as a number."""
    return isinstance(doc[source], int) if source in doc else text.isdigit()


def choices_of(source: str | Sequence[str] | Mapping[str, str], where: str) -> Callable[[Doc], list[str]]:
    """A fixed list, the values of a mapping, a column that holds a list, or a template that renders one.

    Raises:
        UserError: as `text_of`.
    """
    if not isinstance(source, str):
        fixed = [str(choice) for choice in (source.values() if isinstance(source, Mapping) else source)]
        return lambda doc: list(fixed)
    render = _renderer(source, where)

    def choices(doc: Doc) -> list[str]:
        value = doc[source] if source in doc else _literal(render(doc), where)
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise ValueError(f"{where}: expected a list of options, got {value!r}")
        if any(is_null(choice) for choice in value):
            raise null_error(f"{where}: an option in {value!r}")
        return [str(choice) for choice in value]

    return choices


def _literal(text: str, where: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"{where}: {text!r} is not a list") from error


def target_of(source: str | int | Sequence[str], where: str) -> Callable[[Doc], str | int | tuple[str, ...]]:
    """The right option's index or text, or the text of one or several right answers.

    `source` is a number, a fixed list, a column, or a template; a template that renders a list gives a list, as in
    lm-eval. Whether a number is an index depends on whether the task has options; a boolean is the number 0 or 1 if it
    has and a word otherwise, so it is returned unchanged.

    Raises:
        UserError: as `text_of`.
    """
    if isinstance(source, int):
        return lambda doc: source
    if not isinstance(source, str):
        fixed = tuple(str(answer) for answer in source)
        return lambda doc: fixed
    render = _renderer(source, where)

    def target(doc: Doc) -> str | int | tuple[str, ...]:
        value = doc[source] if source in doc else _list_or_text(render(doc))
        if is_null(value) or (isinstance(value, (list, tuple)) and any(is_null(answer) for answer in value)):
            raise null_error(f"column {source!r}" if source in doc else f"{where}: the answer")
        if isinstance(value, (list, tuple)):
            if not value:
                raise ValueError(f"{where}: the list of right answers is empty")
            return tuple(str(answer) for answer in value)
        return value if isinstance(value, int) else str(value)

    return target


def _list_or_text(text: str) -> Any:
    if text[:1] == "[" and text[-1:] == "]" and len(text) > 1:
        try:
            return ast.literal_eval(text)
        except (SyntaxError, ValueError):
            return text
    return text
