"""A task in three lines: rows, a prompt, and an answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial, wraps
from string import Formatter
from typing import Any, TypeVar

from lensprune.errors import UserError
from lensprune.tasks.base import Doc, GenerationFormat, PromptFormat, ProtocolName, RowRequest, Rows, Task
from lensprune.tasks.filters import exact_match, first_line
from lensprune.tasks.formats import three_protocols, uniform_chance
from lensprune.tasks.registry import register_task

__all__ = ["task"]

F = TypeVar("F", bound=Callable[..., Sequence[Mapping[str, Any]]])
Text = str | Callable[[Doc], str]


def task(
    *,
    prompt: Text,
    answer: Text,
    options: str | Sequence[str] | Callable[[Doc], Sequence[str]] | None = None,
    name: str | None = None,
    kind: str | None = None,
    shots: int = 0,
    max_new_tokens: int = 16,
) -> Callable[[F], F]:
    """Register the decorated function, which returns rows, as a task.

    The function's keyword parameters, all with a default, are the task's parameters, as for `register_task`.

    Args:
        prompt, answer: text with columns in braces, or a function of a row. A space joins the two.
        options: the column that holds a row's options, options that all rows share, or a function of a row. The answer
            is one of them, and the task has all three protocols. Without options it has only ``generate``: the first
            line of the text must be the answer, ignoring case and punctuation.
        name: the task's name; ``None`` takes the function's name.
        kind: one of `lensprune.tasks.base.TASK_KINDS`.
        shots: number of few-shot examples, which are other rows of the task.
        max_new_tokens: most new tokens of a generated answer.

    Returns:
        A decorator that registers the task and returns the function unchanged.

    Raises:
        UserError: a text without a column, a name that is taken or invalid, a parameter without a default, or
            options that are no list.

    Examples:
        >>> @lp.task(prompt="The capital of {country} is", answer="{capital}")
        ... def capitals():
        ...     return [{"country": "France", "capital": "Paris"}, {"country": "Peru", "capital": "Lima"}]
        >>> lp.load_task("capitals").items[0].doc["capital"]
        'Paris'
    """
    prompt_of, answer_of = _text(prompt, "prompt"), _text(answer, "answer")
    choices = None if options is None else _options(options)
    formats = _open(prompt_of, answer_of, max_new_tokens) if choices is None else _closed(prompt_of, answer_of, choices)

    def register(rows: F) -> F:
        task_name = str(name or getattr(rows, "__name__", ""))

        @wraps(rows)
        def builder(*args: Any, **values: Any) -> Task:
            def load(request: RowRequest) -> Rows:
                docs = _checked(rows(*args, **values), task_name)
                return Rows(docs, docs, f"rows of {rows.__module__}.{rows.__qualname__}", fewshot_is_evaluated=True)

            return Task(
                name=task_name,
                summary=(rows.__doc__ or "").strip().partition("\n")[0],
                formats=formats,
                chance=uniform_chance(choices) if choices is not None else lambda doc, protocol: 0.0,
                load=load,
                default_shots=shots,
                kind=kind,
            )

        register_task(name=task_name)(builder)
        return rows

    return register


def _text(given: Text, what: str) -> Callable[[Doc], str]:
    if not isinstance(given, str):
        return given
    try:
        columns = [column for _, column, _, _ in Formatter().parse(given) if column]
    except ValueError as error:
        raise UserError(f"{what} {given!r} can't be read ({error}): double a brace that is part of the text") from None
    if not columns:
        raise UserError(f"{what} {given!r} contains no column: write it in braces, like {{country}}")
    return given.format_map


def _options(given: str | Sequence[str] | Callable[[Doc], Sequence[str]]) -> Callable[[Doc], list[str]]:
    if isinstance(given, str):
        return lambda doc: _listed(doc[given], f"column {given!r}")
    if callable(given):
        return lambda doc: _listed(given(doc), "its function")
    fixed = _listed(given, "options")
    return lambda doc: fixed


def _listed(options: Any, where: str) -> list[str]:
    """Options as a list; a text is not one: its letters would be the options."""
    if isinstance(options, (str, bytes, Mapping)) or not hasattr(options, "__iter__"):
        raise UserError(f"the options are {options!r} ({where}), expected a list of texts")
    return list(options)


def _closed(
    prompt: Callable[[Doc], str], answer: Callable[[Doc], str], options: Callable[[Doc], list[str]]
) -> Mapping[ProtocolName, PromptFormat]:
    def gold(doc: Doc) -> int:
        right, choices = answer(doc), options(doc)
        if right not in choices:
            raise ValueError(f"the answer {right!r} is not one of the options {choices}")
        return choices.index(right)

    return three_protocols(prompt, options, gold, continuation_context=prompt)


def _open(
    prompt: Callable[[Doc], str], answer: Callable[[Doc], str], max_new_tokens: int
) -> Mapping[ProtocolName, PromptFormat]:
    form = GenerationFormat(
        context=prompt,
        target=answer,
        filters=(first_line(),),
        matches=partial(exact_match, ignore_case=True, ignore_punctuation=True),
        primary_filter="get_response",
        until=("\n",),
        max_new_tokens=max_new_tokens,
        display_gold=answer,
    )
    return {"generate": form}


def _checked(rows: Any, name: str) -> Sequence[Doc]:
    docs = [] if isinstance(rows, (str, Mapping)) or not hasattr(rows, "__iter__") else list(rows)
    wrong = next((row for row in docs if not isinstance(row, Mapping)), None)
    if not docs or wrong is not None:
        given = type(rows if wrong is None else wrong).__name__ if wrong is not None or rows else "no rows"
        raise UserError(
            f"task {name!r}: its function returned {given}, expected a list of one or more rows like {{'x': 1}}"
        )
    return docs
