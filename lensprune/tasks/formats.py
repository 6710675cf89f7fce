"""Prompt formats that many tasks share: options with letters, and option text as the continuation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from string import ascii_uppercase
from typing import Literal

from lensprune.tasks.base import Doc, GenerationFormat, MultipleChoiceFormat, PromptFormat, ProtocolName
from lensprune.tasks.filters import exact_match, first_line
from lensprune.tasks.measures import letter_or_text
from lensprune.tasks.stated import StatedLetter

__all__ = [
    "LETTER_UNTIL",
    "AnswerForm",
    "choose_from",
    "letter_choice",
    "letter_generation",
    "lettered",
    "letters",
    "three_protocols",
    "uniform_chance",
]

AnswerForm = Literal["text", "letter"]
"""What ``default`` scores: an option's text after a line that lists the options (`choose_from`), or its letter."""

LETTER_UNTIL = ("</s>", "\n")
"""Stop strings of lm-eval's ``mmlu_generative``."""


def letters(n: int) -> list[str]:
    """The first `n` capital letters.

    Raises:
        ValueError: there are more options than letters.
    """
    if n > len(ascii_uppercase):
        raise ValueError(f"{n} options, but only {len(ascii_uppercase)} letters")
    return list(ascii_uppercase[:n])


def lettered(question: str, options: Sequence[str]) -> str:
    """MMLU's form: the question, one line ``A. option`` for each option, then ``Answer:``."""
    lines = [f"{letter}. {option}" for letter, option in zip(letters(len(options)), options, strict=True)]
    return "\n".join([question, *lines, "Answer:"])


def choose_from(options: Sequence[str]) -> str:
    """One line that shows the options: ``Choose from: 7, 5, 12, 9.``

    Small models always write the same letter, but do choose among options listed before the question.
    """
    return f"Choose from: {', '.join(options)}."


def letter_choice(
    question: Callable[[Doc], str],
    options: Callable[[Doc], Sequence[str]],
    gold: Callable[[Doc], int],
    description: Callable[[Doc], str] = lambda doc: "",
) -> MultipleChoiceFormat:
    """Protocol ``default``: options are shown with letters (`lettered`), and the letter is scored."""
    return MultipleChoiceFormat(
        context=lambda doc: lettered(question(doc), options(doc)),
        choices=lambda doc: letters(len(options(doc))),
        gold=gold,
        description=description,
        metrics=("acc",),
        primary_metric="acc",
    )


def letter_generation(
    question: Callable[[Doc], str],
    options: Callable[[Doc], Sequence[str]],
    gold: Callable[[Doc], int],
    description: Callable[[Doc], str] = lambda doc: "",
    max_new_tokens: int = 16,
) -> GenerationFormat:
    """Protocol ``generate`` of a multiple-choice task: lm-eval's ``mmlu_generative`` convention.

    The prompt is that of `letter_choice`; the first line, ignoring case and punctuation, must be the letter.
    The metric ``letter_or_text`` also accepts a sentence that names the right option by its letter or its text; the
    filter ``stated`` extracts the letter that a longer text states last (`StatedLetter`).
    `max_new_tokens` is small because an answer is one letter; lm-eval's limit is 256.
    """

    def target(doc: Doc) -> str:
        return letters(len(options(doc)))[gold(doc)]

    return GenerationFormat(
        context=lambda doc: lettered(question(doc), options(doc)),
        target=target,
        filters=(first_line(),),
        matches=partial(exact_match, ignore_case=True, ignore_punctuation=True),
        primary_filter="get_response",
        until=LETTER_UNTIL,
        max_new_tokens=max_new_tokens,
        display_gold=target,
        description=description,
        is_answer=lambda text: any(
            exact_match(text, letter, ignore_case=True, ignore_punctuation=True) for letter in ascii_uppercase
        ),
        measures={"letter_or_text": lambda text, doc: letter_or_text(text, options(doc)) == gold(doc)},
        own_filters=(StatedLetter(),),
    )


def three_protocols(
    question: Callable[[Doc], str],
    options: Callable[[Doc], Sequence[str]],
    gold: Callable[[Doc], int],
    *,
    continuation_context: Callable[[Doc], str],
    primary_metric: Literal["acc", "acc_norm"] = "acc_norm",
    metrics: tuple[str, ...] = ("acc", "acc_norm"),
) -> Mapping[ProtocolName, PromptFormat]:
    """All three protocols of a multiple-choice task.

    `question` is shown above the lettered options (``default``, ``generate``); `continuation_context` is followed by
    an option's text (``continuation``, options not shown).
    """
    return {
        "default": letter_choice(question, options, gold),
        "continuation": MultipleChoiceFormat(
            context=continuation_context,
            choices=options,
            gold=gold,
            metrics=metrics,
            primary_metric=primary_metric,
        ),
        "generate": letter_generation(question, options, gold),
    }


def uniform_chance(options: Callable[[Doc], Sequence[str]]) -> Callable[[Doc, ProtocolName], float]:
    """Chance level of a multiple-choice task: one over the number of options, under every protocol.

    This includes ``generate``: a model that always writes the same letter is right that often.
    """
    return lambda doc, protocol: 1.0 / len(options(doc))
