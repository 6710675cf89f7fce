"""HellaSwag (Zellers et al. 2019): choose the ending that follows."""

from __future__ import annotations

import re

from lensprune.tasks.base import Doc, Task
from lensprune.tasks.formats import three_protocols, uniform_chance
from lensprune.tasks.registry import register_task
from lensprune.tasks.sources import Dataset, sharing

__all__ = ["hellaswag"]


def _cleaned(text: str) -> str:
    # The brackets are left over from WikiHow's markup; the order of these steps is lm-eval's.
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def _query(doc: Doc) -> str:
    return _cleaned(f"{doc['activity_label']}: {doc['ctx_a']} {str(doc['ctx_b']).capitalize()}")


def _endings(doc: Doc) -> list[str]:
    return [_cleaned(ending) for ending in doc["endings"]]


def _gold(doc: Doc) -> int:
    return int(doc["label"])


@register_task
def hellaswag() -> Task:
    """lm-eval's ``hellaswag`` under ``continuation`` (acc_norm decides).

    ``default`` and ``generate`` show the same text with the four endings as lettered options, in MMLU's form. Rows from
    one video or article are one cluster.
    """
    return Task(
        name="hellaswag",
        summary="choose the ending that follows, four options",
        kind="knowledge",
        formats=three_protocols(_query, _endings, _gold, continuation_context=_query),
        chance=uniform_chance(_endings),
        load=Dataset(
            folder="hellaswag",
            columns=("activity_label", "ctx_a", "ctx_b", "endings", "label"),
            hub="Rowan/hellaswag",
            splits=("validation",),
            twins=sharing("source_id"),
        ),
        exclude_self=True,
        lm_eval={"continuation": "hellaswag"},
        licence="MIT",
        source="https://github.com/rowanz/hellaswag",
    )
