"""Check that a task's reference answers are right by its own filters and metric."""

from __future__ import annotations

import logging
import re
import re._constants as constants  # type: ignore[import-not-found]
import re._parser as parser  # type: ignore[import-not-found]
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from lensprune.errors import UserError
from lensprune.tasks.base import Doc, Filter, GenerationFormat, Item
from lensprune.tasks.filters import FilterChain, RegexFilter, answers_of, remove_whitespace

__all__ = ["MAX_WRONG", "can_be_right", "check_own_answers"]

logger = logging.getLogger("lensprune")

MAX_WRONG = 0.1
"""Largest share of items whose reference no answer can match; above it the task is rejected."""

_SIMPLE = (str.lower, str.upper, remove_whitespace)
_SAMPLES = {
    constants.CATEGORY_SPACE: " ",
    constants.CATEGORY_NOT_SPACE: "x",
    constants.CATEGORY_DIGIT: "0",
    constants.CATEGORY_NOT_DIGIT: "x",
    constants.CATEGORY_WORD: "x",
    constants.CATEGORY_NOT_WORD: " ",
}


def check_own_answers(fmt: GenerationFormat, items: Sequence[Item], where: str) -> None:
    """Warn if no answer can match the references of some items, and raise if there are many.

    Raises:
        UserError: more than `MAX_WRONG` of the items are affected; the message names the first.
    """
    wrong = [item for item in items if not can_be_right(fmt, item.doc)]
    if not wrong:
        return
    first = fmt.target(wrong[0].doc)
    findings = ", ".join(f"{f.name} finds {f(first)!r}" for f in fmt.filters)
    message = (
        f"{where}: the reference of {len(wrong)} of {len(items)} items is wrong by the task's own filters and metric, "
        f"so that no answer can be right; the first is item {wrong[0].id}: {first[-60:]!r} ({findings})"
    )
    if len(wrong) > MAX_WRONG * len(items):
        raise UserError(message)
    logger.warning(message)


def can_be_right(fmt: GenerationFormat, doc: Doc) -> bool:
    """Whether any filter extracts a right answer from the reference, bare or in the phrase that the filter expects.

    Also true if that can't be determined: a filter written in Python, one that maps answers, or a pattern with
    lookarounds or backreferences.
    """
    target = fmt.target(doc)
    for answer_filter in fmt.filters:
        steps = answer_filter.steps if isinstance(answer_filter, FilterChain) else (answer_filter,)
        if not all(isinstance(step, RegexFilter) or step in _SIMPLE for step in steps):
            return True
        for text in _texts(answer_filter, answers_of(target)):
            extracted = None if text is None else answer_filter(text)
            if text is None or (extracted is not None and fmt.matches(extracted, target)):
                return True
    return False


def _texts(answer_filter: Filter, answers: Iterable[str]) -> Iterable[str | None]:
    """The answers bare, then within the words around the group of the filter's pattern; `None` if those are unknown."""
    steps = answer_filter.steps if isinstance(answer_filter, FilterChain) else (answer_filter,)
    pattern = next((step.pattern for step in steps if isinstance(step, RegexFilter)), None)
    for answer in answers:
        yield answer
    if pattern is None:
        return
    try:
        before, after = _around_group(pattern)
    except NotImplementedError:
        yield None
        return
    for answer in answers:
        yield f"{before}{answer}{after}"


@lru_cache
def _around_group(pattern: str) -> tuple[str, str]:
    """The shortest texts that `pattern` matches before and after its first group (or itself, if it has no group).

    Raises:
        NotImplementedError: no matching text can be constructed for a part of the pattern.
    """
    if re.compile(pattern).groups == 0:
        return "", ""
    before, mark, after = _shortest(parser.parse(pattern)).partition("\0")
    return (before, after.replace("\0", "")) if mark else ("", "")


def _shortest(nodes: Iterable[tuple[Any, Any]]) -> str:
    return "".join(_shortest_of(kind, value) for kind, value in nodes)


def _shortest_of(kind: Any, value: Any) -> str:
    if kind is constants.LITERAL:
        return chr(value)
    if kind is constants.ANY:
        return "."
    if kind is constants.AT:
        return ""
    if kind is constants.IN:
        return _shortest_of(*value[0])
    if kind is constants.RANGE:
        return chr(value[0])
    if kind is constants.CATEGORY and value in _SAMPLES:
        return _SAMPLES[value]
    if kind in (constants.MAX_REPEAT, constants.MIN_REPEAT, constants.POSSESSIVE_REPEAT):
        least, _, inner = value
        text = _shortest(inner)
        return text if "\0" in text else text * least
    if kind is constants.SUBPATTERN:
        return "\0" if value[0] is not None else _shortest(value[-1])
    if kind is constants.BRANCH:
        return next((text for text in map(_shortest, value[1]) if "\0" in text), _shortest(value[1][0]))
    raise NotImplementedError(str(kind))
