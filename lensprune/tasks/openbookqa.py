"""OpenBookQA (Mihaylov et al. 2018), closed book and open book (with the supporting fact)."""

from __future__ import annotations

from lensprune.tasks.base import Doc, Task
from lensprune.tasks.formats import three_protocols, uniform_chance
from lensprune.tasks.registry import register_task
from lensprune.tasks.sources import Dataset

__all__ = ["gold_option", "openbookqa", "openbookqa_open", "option_texts"]


def option_texts(doc: Doc) -> list[str]:
    """The options of a row whose ``choices`` hold parallel lists ``text`` and ``label`` (OpenBookQA, ARC)."""
    return list(doc["choices"]["text"])


def gold_option(doc: Doc) -> int:
    """Index of the option that ``answerKey`` names.

    Raises:
        ValueError: no option has that label.
    """
    return list(doc["choices"]["label"]).index(str(doc["answerKey"]).lstrip())


def _stem(doc: Doc) -> str:
    return str(doc["question_stem"])


def _open_stem(doc: Doc) -> str:
    return f"{doc['fact1']}\n{doc['question_stem']}"


def _task(name: str, summary: str, *, open_book: bool) -> Task:
    stem = _open_stem if open_book else _stem
    return Task(
        name=name,
        summary=summary,
        kind="knowledge",
        closed_book="openbookqa" if open_book else None,
        formats=three_protocols(stem, option_texts, gold_option, continuation_context=stem),
        chance=uniform_chance(option_texts),
        load=Dataset(
            folder="openbookqa",
            columns=("question_stem", "choices", "answerKey", *(["fact1"] if open_book else [])),
            hub="allenai/openbookqa",
            config="additional" if open_book else "main",
        ),
        lm_eval={} if open_book else {"continuation": "openbookqa"},
        licence="Apache-2.0 (repository; the data has no licence of its own)",
        source="https://github.com/allenai/OpenBookQA",
    )


@register_task
def openbookqa() -> Task:
    """Closed book: lm-eval's ``openbookqa`` under ``continuation`` (acc_norm decides).

    ``default`` and ``generate`` show the question with the four options lettered, in MMLU's form.
    """
    return _task("openbookqa", "elementary science without the supporting fact, four options", open_book=False)


@register_task
def openbookqa_open() -> Task:
    """Open book: the row's ``fact1`` on a separate line before the question, also in few-shot examples.

    The prompt is ``{fact1}\\n{question_stem}``, otherwise as in `openbookqa`.
    """
    return _task("openbookqa_open", "elementary science with the supporting fact first", open_book=True)
