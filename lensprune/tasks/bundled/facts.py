"""Facts that a child knows, four options each, with a supporting fact for the open-book version."""

from __future__ import annotations

from functools import partial

from lensprune.tasks.base import Doc, GenerationFormat, MultipleChoiceFormat, Task
from lensprune.tasks.filters import exact_match, first_line
from lensprune.tasks.formats import LETTER_UNTIL, AnswerForm, choose_from, three_protocols, uniform_chance
from lensprune.tasks.openbookqa import gold_option, option_texts
from lensprune.tasks.registry import register_task
from lensprune.tasks.sources import Dataset

__all__ = ["facts", "facts_open"]


def _stem(doc: Doc) -> str:
    return str(doc["question_stem"])


def _open_stem(doc: Doc) -> str:
    return f"{doc['fact1']}\n{doc['question_stem']}"


def _gold_text(doc: Doc) -> str:
    return option_texts(doc)[gold_option(doc)]


def _choose_from(doc: Doc, *, open_book: bool) -> str:
    stem = _open_stem(doc) if open_book else _stem(doc)
    return f"{choose_from(option_texts(doc))}\n{stem}"


def _task(name: str, summary: str, *, answer: AnswerForm, open_book: bool) -> Task:
    stem = _open_stem if open_book else _stem
    formats = dict(three_protocols(stem, option_texts, gold_option, continuation_context=stem))
    if answer == "text":
        formats["default"] = MultipleChoiceFormat(
            context=partial(_choose_from, open_book=open_book),
            choices=option_texts,
            gold=gold_option,
            primary_metric="acc_norm",
        )
        formats["generate"] = GenerationFormat(
            context=partial(_choose_from, open_book=open_book),
            target=_gold_text,
            filters=(first_line(),),
            matches=partial(exact_match, ignore_case=True, ignore_punctuation=True),
            primary_filter="get_response",
            until=(*LETTER_UNTIL, ".", ",", ";"),
            max_new_tokens=16,
            display_gold=_gold_text,
        )
    return Task(
        name=name,
        summary=summary,
        kind="knowledge",
        closed_book="facts" if open_book else None,
        formats=formats,
        chance=uniform_chance(option_texts),
        load=Dataset(folder="facts", columns=("id", "question_stem", "choices", "answerKey", "fact1", "subject")),
        default_shots=2,
        fewshot_sampler="first_n",
        item_id=lambda doc, index: str(doc["id"]),
        cluster=lambda doc: str(doc["subject"]),
        licence="MIT",
        source="written for lensprune",
    )


@register_task
def facts(answer: AnswerForm = "text") -> Task:
    """Closed book, in OpenBookQA's schema and prompts.

    Args:
        answer: what ``default`` scores and ``generate`` expects. ``text``: the option's text, after a prompt that lists
            the options before the stem (``Choose from: …``); a generated answer is cut at the first full stop, comma,
            semicolon or line break and compared ignoring case and punctuation. ``letter``: the letter, below lettered
            options, by the conventions of lm-eval's ``mmlu`` and ``mmlu_generative``.
    """
    return _task("facts", "easy facts, four options", answer=answer, open_book=False)


@register_task
def facts_open(answer: AnswerForm = "text") -> Task:
    """Open book: the row's ``fact1`` on a separate line before the stem; otherwise as `facts`."""
    return _task("facts_open", "easy facts with a supporting fact first", answer=answer, open_book=True)
