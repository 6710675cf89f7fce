"""BoolQ (Clark et al. 2019): yes or no, from a passage."""

from __future__ import annotations

from lensprune.tasks.base import Doc, Task
from lensprune.tasks.formats import three_protocols, uniform_chance
from lensprune.tasks.registry import register_task
from lensprune.tasks.sources import Dataset, sharing

__all__ = ["boolq"]


def _question(doc: Doc) -> str:
    return f"{doc['passage']}\nQuestion: {doc['question']}?"


def _options(doc: Doc) -> list[str]:
    return ["no", "yes"]


def _gold(doc: Doc) -> int:
    return int(doc["label"])


@register_task
def boolq() -> Task:
    """lm-eval's ``boolq`` under ``continuation`` (the words no and yes; acc decides).

    ``default`` and ``generate`` show passage and question with the options ``A. no`` and ``B. yes``. Questions
    about one passage are one cluster.
    """
    return Task(
        name="boolq",
        summary="yes or no from a passage",
        kind="knowledge",
        formats=three_protocols(
            _question,
            _options,
            _gold,
            continuation_context=lambda doc: f"{_question(doc)}\nAnswer:",
            primary_metric="acc",
            metrics=("acc",),
        ),
        chance=uniform_chance(_options),
        load=Dataset(
            folder="boolq",
            columns=("passage", "question", "label"),
            hub="aps/super_glue",
            config="boolq",
            splits=("validation",),
            twins=sharing("passage"),
        ),
        exclude_self=True,
        lm_eval={"continuation": "boolq"},
        licence="CC BY-SA 3.0",
        source="https://github.com/google-research-datasets/boolean-questions",
    )
