"""MathQA (Amini et al. 2019): word problems with five options."""

from __future__ import annotations

import re

from lensprune.tasks.base import Doc, Task
from lensprune.tasks.formats import three_protocols, uniform_chance
from lensprune.tasks.registry import register_task
from lensprune.tasks.sources import Dataset

__all__ = ["mathqa"]


def _options(doc: Doc) -> list[str]:
    """lm-eval's reading of ``a ) 38 , b ) 27.675 , … , e ) none``; the quotes and brackets of some rows are kept."""
    return [option[4:].rstrip(" ,") for option in re.findall(r"[abcd] \) .*?, |e \) .*?$", doc["options"])]


def _gold(doc: Doc) -> int:
    return "abcde".index(doc["correct"])


def _question(doc: Doc) -> str:
    return f"Question: {doc['Problem']}"


@register_task
def mathqa() -> Task:
    """lm-eval's ``mathqa`` under ``continuation`` (acc_norm decides).

    ``default`` and ``generate`` show the question with the five options lettered, in MMLU's form.
    """
    return Task(
        name="mathqa",
        summary="mathematical word problems, five options",
        kind="reasoning",
        formats=three_protocols(
            _question, _options, _gold, continuation_context=lambda doc: f"{_question(doc)}\nAnswer:"
        ),
        chance=uniform_chance(_options),
        load=Dataset(
            folder="math_qa",
            columns=("Problem", "options", "correct"),
            hub="regisss/math_qa",
            fewshot_splits=("train", "fewshot"),
        ),
        lm_eval={"continuation": "mathqa"},
        licence="Apache-2.0",
        source="https://math-qa.github.io",
    )
