"""Answer extraction and comparison, as in lm-eval 0.4.13."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

__all__ = [
    "FLEXIBLE_NUMBER",
    "AnyOf",
    "FilterChain",
    "RegexFilter",
    "answers_of",
    "exact_match",
    "first_line",
    "remove_whitespace",
    "take_first",
]

FLEXIBLE_NUMBER = r"(-?[$0-9.,]{2,})|(-?[0-9]+)"
"""The pattern of lm-eval's ``flexible-extract``: with ``group_select=-1``, the last number of the text."""


@dataclass(frozen=True)
class RegexFilter:
    """lm-eval's ``regex``: the `group_select`-th match of `pattern` (with several groups, the first non-empty one).

    The result is stripped. If there are too few matches, it is `fallback`; ``None`` stands for lm-eval's
    ``[invalid]``, which is no answer.
    """

    name: str
    pattern: str
    group_select: int = 0
    fallback: str | None = None
    _compiled: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_compiled", re.compile(self.pattern))

    def __call__(self, text: str) -> str | None:
        try:
            match = self._compiled.findall(text)[self.group_select]
        except IndexError:
            return self.fallback
        if isinstance(match, tuple):
            match = next((group for group in match if group), self.fallback)
        return None if match is None else match.strip()


def remove_whitespace(text: str) -> str:
    """lm-eval's ``remove_whitespace``."""
    return text.strip()


def take_first(texts: Sequence[str]) -> str:
    """lm-eval's ``take_first``: the first of several sampled responses.

    Raises:
        IndexError: there is no response.
    """
    return texts[0]


@dataclass(frozen=True)
class FilterChain:
    """Filters applied in sequence; ``None`` as soon as one of them extracts nothing."""

    name: str
    steps: tuple[Callable[[str], str | None], ...]

    def __call__(self, text: str) -> str | None:
        extracted: str | None = text
        for step in self.steps:
            if extracted is None:
                return None
            extracted = step(extracted)
        return extracted


def first_line(name: str = "get_response") -> FilterChain:
    """The filter of lm-eval's ``mmlu_generative``: the first line, stripped."""
    return FilterChain(
        name,
        (
            RegexFilter(name, r"^(.*?)(?=\n|$)"),
            remove_whitespace,
            RegexFilter(name, r"^(.*?)\s*$"),
        ),
    )


_PUNCTUATION = str.maketrans("", "", string.punctuation)


class AnyOf(str):
    """Several right answers: a string equal to the first, which few-shot examples show; `answers` holds all."""

    answers: tuple[str, ...]

    def __new__(cls, answers: Sequence[str]) -> AnyOf:
        """Raises `ValueError` if there is no answer."""
        if not answers:
            raise ValueError("the list of right answers is empty")
        made = super().__new__(cls, answers[0])
        made.answers = tuple(answers)
        return made


def answers_of(target: str) -> tuple[str, ...]:
    """Every right answer that `target` stands for."""
    return target.answers if isinstance(target, AnyOf) else (target,)


def exact_match(
    prediction: str,
    reference: str,
    *,
    regexes_to_ignore: Sequence[str] = (),
    ignore_case: bool = False,
    ignore_punctuation: bool = False,
    ignore_numbers: bool = False,
) -> bool:
    """lm-eval's ``exact_match``: both sides are normalised, then compared as strings; with `AnyOf`, any answer matches.

    The order is lm-eval's: `regexes_to_ignore` are removed in turn, then case, ASCII punctuation and digits.
    """
    sides = [prediction, *answers_of(reference)]
    for pattern in regexes_to_ignore:
        sides = [re.sub(pattern, "", side) for side in sides]
    if ignore_case:
        sides = [side.lower() for side in sides]
    if ignore_punctuation:
        sides = [side.translate(_PUNCTUATION) for side in sides]
    if ignore_numbers:
        sides = [side.translate(str.maketrans("", "", string.digits)) for side in sides]
    return sides[0] in sides[1:]
