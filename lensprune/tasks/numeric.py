"""Likelihood protocols for tasks whose answer is a number."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from fractions import Fraction
from functools import partial

from lensprune.tasks.base import Doc, GenerationFormat, MultipleChoiceFormat, PromptFormat, ProtocolName
from lensprune.tasks.distractors import number_options, parse_number
from lensprune.tasks.filters import FLEXIBLE_NUMBER, RegexFilter, exact_match
from lensprune.tasks.formats import AnswerForm, choose_from, letter_choice
from lensprune.tasks.measures import last_number
from lensprune.tasks.stated import BoxedFilter, stated_number

__all__ = ["NUMBER_OPTIONS", "contains_digit", "number_choices", "number_generation", "numeric_chance"]

NUMBER_OPTIONS = 4
"""Options per item under the likelihood protocols: the answer and three distractors."""

_GSM8K_IGNORED = (",", r"\$", r"(?s).*#### ", r"\.$")


def contains_digit(text: str) -> bool:
    """Whether an extracted text can be a numeric answer."""
    return any(character.isdigit() for character in text)


def number_choices(
    question: Callable[[Doc], str],
    prompt: Callable[[Doc], str],
    answer: Callable[[Doc], str],
    default_answer: AnswerForm = "letter",
) -> Mapping[ProtocolName, PromptFormat]:
    """``default`` and ``continuation`` for a task whose answer is a number.

    The options are the answer and three wrong numbers (`number_options`: a function of the question alone, so all
    protocols and runs use the same ones). ``default`` shows them with letters below `question` and scores the letter;
    with `default_answer` ``text`` it lists them in a line before `prompt` (`choose_from`) and scores the number.
    ``continuation`` scores the bare final number after `prompt`, without worked steps, so few-shot examples also end in
    the bare number.
    """

    def options(doc: Doc) -> tuple[list[str], int]:
        return number_options(question(doc), answer(doc), NUMBER_OPTIONS)

    continuation = MultipleChoiceFormat(
        context=prompt,
        choices=lambda doc: options(doc)[0],
        gold=lambda doc: options(doc)[1],
        metrics=("acc",),
        primary_metric="acc",
    )
    if default_answer == "text":
        default = replace(continuation, context=lambda doc: f"{choose_from(options(doc)[0])}\n{prompt(doc)}")
    else:
        default = letter_choice(question, continuation.choices, continuation.gold)
    return {"default": default, "continuation": continuation}


def number_generation(
    prompt: Callable[[Doc], str],
    target: Callable[[Doc], str],
    answer: Callable[[Doc], str],
    *,
    strict_pattern: str,
    until: tuple[str, ...],
    max_new_tokens: int = 256,
    primary_filter: str = "strict-match",
    also_ignored: tuple[str, ...] = (),
) -> GenerationFormat:
    """``generate`` for a task whose answer is a number: lm-eval's GSM8K filters and exact match.

    ``strict-match`` finds the number after the phrase that the few-shot examples use (`strict_pattern`),
    ``flexible-extract`` the last number of the text. `max_new_tokens` is lm-eval's default. `also_ignored`: patterns
    removed before the comparison in addition to GSM8K's, such as the text before the number in `target`. The metric
    ``last_number`` compares the last number of the text by value. The filter ``boxed`` extracts the content of the last
    box, and ``equal`` compares a filter's result by value (`stated_number`); lm-eval has neither.
    """
    return GenerationFormat(
        context=prompt,
        target=target,
        filters=(
            RegexFilter("strict-match", strict_pattern),
            RegexFilter("flexible-extract", FLEXIBLE_NUMBER, group_select=-1),
        ),
        matches=partial(exact_match, regexes_to_ignore=(*_GSM8K_IGNORED, *also_ignored), ignore_case=True),
        primary_filter=primary_filter,
        until=until,
        max_new_tokens=max_new_tokens,
        display_gold=lambda doc: f"{parse_number(answer(doc)):f}",
        is_answer=contains_digit,
        measures={"last_number": lambda text, doc: last_number(text) == parse_number(answer(doc))},
        own_filters=(BoxedFilter(),),
        equals=lambda text, doc: stated_number(text) == Fraction(parse_number(answer(doc))),
    )


def numeric_chance(doc: Doc, protocol: ProtocolName) -> float:
    """One in four options under the likelihood protocols, 0 for an open number."""
    return 0.0 if protocol == "generate" else 1.0 / NUMBER_OPTIONS
