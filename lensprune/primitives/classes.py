"""The class of each token of a worked solution: a copied operand, a result, a carried result, …"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lensprune.ablation.positions import TOKEN_CLASSES
from lensprune.errors import UserError
from lensprune.models.base import HookedModel
from lensprune.models.spans import encode_with_spans

__all__ = ["CLASSES", "Mark", "MarkedSolution", "mark_solution", "token_classes", "tokenize_solution"]

CLASSES = TOKEN_CLASSES
"""``operand``: a number of the question where a step uses it; ``operator``; ``result``: the number after a step's
``=``; ``carried``: an earlier result where a later step uses it; ``conclusion``: the words that lead to the final
answer, after the last step; ``answer``: the final answer; ``words``: everything else, including ``=`` and
punctuation."""

_NUMBER = r"\d+(?:,\d{3})*(?:\.\d+)?"
_OPERATOR = r"[-+*/×÷]"
_EQUATION = re.compile(rf"{_NUMBER}(?:\s*{_OPERATOR}\s*{_NUMBER})+\s*=\s*-?{_NUMBER}")
_PART = re.compile(rf"(?P<number>{_NUMBER})|(?P<operator>{_OPERATOR})|(?P<equals>=)")
_RESULT = re.compile(rf"-?{_NUMBER}")
_PUNCTUATION = " \t\r\n.,;:!"
_UNCLEAR = ""


@dataclass(frozen=True)
class Mark:
    """Characters `start` to `stop` (exclusive) of a solution, and their class ("" if it is ambiguous)."""

    start: int
    stop: int
    kind: str


def mark_solution(question: str, solution: str) -> list[Mark]:
    """Classify a solution's characters, in order and without gaps.

    Steps are equations such as ``3 + 4 = 7``. An operand that equals the result of the preceding step and comes
    first in its step is ``carried``; any other operand is an ``operand`` if the question has this number, else
    ``carried`` if it is the result of an earlier step, else it has no class. Numbers outside of steps are treated the
    same way, except for the last one after all steps: the ``answer``. Without steps there is no result and no
    conclusion.

    Raises:
        UserError: the solution contains calculator marks (``<<3+4=7>>``), which repeat every number.
    """
    if "<<" in solution:
        raise UserError("the solution contains calculator marks like <<3+4=7>>: remove them first")
    given = {_value(number) for number in re.findall(_NUMBER, question)}
    marks: list[Mark] = []
    results: list[str] = []
    end = 0
    for equation in _EQUATION.finditer(solution):
        marks += _outside(solution, end, equation.start(), given, results)
        marks += _step(solution, equation, given, results)
        end = equation.end()
    tail = _outside(solution, end, len(solution), given, results)
    if results:
        tail = _concluded(solution, end, tail)
    return _filled(marks + tail, len(solution))


def _value(number: str) -> str:
    return number.replace(",", "")


def _operand_kind(number: str, given: set[str], results: Sequence[str], first: bool) -> str:
    if first and results and number == results[-1]:
        return "carried"
    if number in given:
        return "operand"
    return "carried" if number in results else _UNCLEAR


def _step(solution: str, equation: re.Match[str], given: set[str], results: list[str]) -> list[Mark]:
    marks = []
    first = True
    equals = solution.rindex("=", *equation.span())
    for part in _PART.finditer(solution, equation.start(), equals):
        if part.lastgroup == "number":
            kind = _operand_kind(_value(part[0]), given, results, first)
            first = False
            marks.append(Mark(*part.span(), kind))
        elif part.lastgroup == "operator":
            marks.append(Mark(*part.span(), "operator"))
    match = _RESULT.search(solution, equals, equation.end())
    assert match is not None
    results.append(_value(match[0]))
    return [*marks, Mark(*match.span(), "result")]


def _outside(solution: str, start: int, stop: int, given: set[str], results: Sequence[str]) -> list[Mark]:
    numbers = re.finditer(_NUMBER, solution[start:stop])
    return [
        Mark(start + n.start(), start + n.end(), _operand_kind(_value(n[0]), given, results, False)) for n in numbers
    ]


def _concluded(solution: str, end: int, tail: list[Mark]) -> list[Mark]:
    """Classes after the last step: its punctuation, the conclusion, the answer."""
    if not tail:
        return tail
    *before, last = tail
    answer = Mark(last.start, last.stop, "answer")
    start = end
    while start < last.start and solution[start] in _PUNCTUATION:
        start += 1
    pieces: list[Mark] = []
    for mark in [*before, Mark(last.start, last.start, "")]:
        if start < mark.start:
            pieces.append(Mark(start, mark.start, "conclusion"))
        start = mark.stop
    return sorted([*before, *pieces, answer], key=lambda mark: mark.start)


def _filled(marks: Sequence[Mark], length: int) -> list[Mark]:
    """The marks with ``words`` between them."""
    filled: list[Mark] = []
    end = 0
    for mark in [*marks, Mark(length, length, "words")]:
        if end < mark.start:
            filled.append(Mark(end, mark.start, "words"))
        if mark.start < mark.stop:
            filled.append(mark)
        end = mark.stop
    return filled


def token_classes(text: str, start: int, marks: Sequence[Mark], spans: Sequence[tuple[int, int]]) -> list[str]:
    """The class of each token; "" for a token with characters of several classes.

    Spaces are ignored next to other characters, since many tokenizers merge a space into the next token; a token of
    only spaces is one of the ``words``.

    Args:
        text: question and solution; `marks` count from `start`, the solution's first character.
        spans: range of characters of `text` that each token covers.
    """
    kinds = []
    for first, stop in spans:
        overlapping = {
            mark.kind
            for mark in marks
            if text[max(first, start + mark.start) : max(0, min(stop, start + mark.stop))].strip()
        }
        kinds.append(overlapping.pop() if len(overlapping) == 1 else "words" if not overlapping else _UNCLEAR)
    return kinds


@dataclass(frozen=True)
class MarkedSolution:
    """A prompt, and the tokens of the solution after it with their classes ("": none), and the number of the step
    that each belongs to, from 0 (``None``: none)."""

    context_ids: tuple[int, ...]
    solution_ids: tuple[int, ...]
    kinds: tuple[str, ...]
    steps: tuple[int | None, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """The class of every token, as in ``step[0].result``; the prompt's have none."""
        steps = self.steps or (None,) * len(self.kinds)
        of_solution = (
            kind if step is None or not kind else f"step[{step}].{kind}"
            for kind, step in zip(self.kinds, steps, strict=True)
        )
        return ("",) * len(self.context_ids) + tuple(of_solution)


def tokenize_solution(model: HookedModel, context: str, question: str, solution: str) -> MarkedSolution:
    """Tokens of `solution` after `context`, which ends in `question`.

    A token with characters of both belongs to the prompt.

    Raises:
        UserError: no token of the solution is left, or nothing is before it, or it is longer than the model's
            context.
    """
    text = context + solution
    encoded = encode_with_spans(model, text)
    front = next((i for i, (a, b) in enumerate(encoded.spans) if a < b and a >= len(context)), len(encoded.ids))
    if front in (0, len(encoded.ids)):
        raise UserError(f"the solution {solution!r} adds no token to its question {question!r}")
    if len(encoded.ids) > model.facts.n_ctx:
        raise UserError(
            f"a prompt with its solution has {len(encoded.ids)} tokens, but the context of {model.facts.name} is "
            f"{model.facts.n_ctx}: use fewer shots"
        )
    spans = encoded.spans[front:]
    kinds = token_classes(text, len(context), mark_solution(question, solution), spans)
    steps = [(len(context) + a, len(context) + b) for a, b in (e.span() for e in _EQUATION.finditer(solution))]
    step_of = tuple(
        next((i for i, (a, b) in enumerate(steps) if text[max(start, a) : max(0, min(stop, b))].strip()), None)
        for start, stop in spans
    )
    return MarkedSolution(encoded.ids[:front], encoded.ids[front:], tuple(kinds), step_of)
