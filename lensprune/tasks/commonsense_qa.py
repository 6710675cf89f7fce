"""CommonsenseQA (Talmor et al. 2019): five options."""

from __future__ import annotations

from lensprune.tasks.base import Doc, Task
from lensprune.tasks.formats import three_protocols, uniform_chance
from lensprune.tasks.openbookqa import option_texts
from lensprune.tasks.registry import register_task
from lensprune.tasks.sources import Dataset

__all__ = ["commonsense_qa"]


def _question(doc: Doc) -> str:
    return f"Question: {str(doc['question']).strip()}"


def _gold(doc: Doc) -> int:
    return "ABCDE".index(doc["answerKey"])


@register_task
def commonsense_qa() -> Task:
    """lm-eval's ``commonsense_qa`` under ``default``: lettered options, the letter scored.

    ``continuation`` scores the option's text after the same question without options (acc_norm decides); under
    ``generate`` the model writes the letter.
    """
    return Task(
        name="commonsense_qa",
        summary="everyday knowledge, five options",
        kind="knowledge",
        formats=three_protocols(
            _question, option_texts, _gold, continuation_context=lambda doc: f"{_question(doc)}\nAnswer:"
        ),
        chance=uniform_chance(option_texts),
        load=Dataset(
            folder="commonsense_qa",
            columns=("question", "choices", "answerKey"),
            hub="tau/commonsense_qa",
            splits=("validation",),
        ),
        exclude_self=True,
        lm_eval={"default": "commonsense_qa"},
        licence="MIT",
        source="https://www.tau-nlp.org/commonsenseqa",
    )
