"""WinoGrande (Sakaguchi et al. 2020): which of two names fills the blank."""

from __future__ import annotations

from collections.abc import Sequence

from lensprune.tasks.base import Doc, MultipleChoiceFormat, Task
from lensprune.tasks.formats import letter_choice, letter_generation, uniform_chance
from lensprune.tasks.registry import register_task
from lensprune.tasks.sources import Dataset

__all__ = ["winogrande"]


def _options(doc: Doc) -> list[str]:
    return [str(doc["option1"]), str(doc["option2"])]


def _gold(doc: Doc) -> int:
    return ("1", "2").index(str(doc["answer"]))


def _sentence(doc: Doc) -> str:
    return str(doc["sentence"])


def _beginnings(doc: Doc) -> list[str]:
    before = _sentence(doc)[: _sentence(doc).index("_")]
    return [before + option for option in _options(doc)]


def _ending(doc: Doc) -> str:
    return _sentence(doc)[_sentence(doc).index("_") + 1 :].strip()


def _pairs(docs: Sequence[Doc]) -> list[str]:
    """Labels that pair consecutive rows with the same two names: twins, whose answers differ."""
    labels: list[str] = []
    for place, doc in enumerate(docs):
        same = place > 0 and sorted(_options(doc)) == sorted(_options(docs[place - 1]))
        complete = place > 1 and labels[place - 1] == labels[place - 2]
        labels.append(labels[-1] if same and not complete else str(place))
    return labels


@register_task
def winogrande() -> Task:
    """lm-eval's ``winogrande`` under ``continuation``: partial scoring (Trinh & Le 2018), where each option ends its
    own context and the rest of the sentence, the same for both, is scored (acc decides).

    ``default`` and ``generate`` show the sentence with its blank ``_`` and the two options lettered. Twins (consecutive
    rows with the same names) are one cluster.
    """
    return Task(
        name="winogrande",
        summary="fill the blank with one of two names",
        kind="knowledge",
        formats={
            "default": letter_choice(_sentence, _options, _gold),
            "continuation": MultipleChoiceFormat(
                context=lambda doc: "",
                choices=_beginnings,
                gold=_gold,
                continuation=_ending,
                metrics=("acc",),
                primary_metric="acc",
            ),
            "generate": letter_generation(_sentence, _options, _gold),
        },
        chance=uniform_chance(_options),
        load=Dataset(
            folder="winogrande",
            columns=("sentence", "option1", "option2", "answer"),
            hub="allenai/winogrande",
            config="winogrande_xl",
            splits=("validation",),
            twins=_pairs,
        ),
        exclude_self=True,
        lm_eval={"continuation": "winogrande"},
        licence="CC BY",
        source="https://github.com/allenai/winogrande",
    )
