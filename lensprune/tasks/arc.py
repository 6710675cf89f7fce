"""ARC (Clark et al. 2018): science exam questions, mostly with four options."""

from __future__ import annotations

from lensprune.tasks.base import Doc, Task
from lensprune.tasks.formats import three_protocols, uniform_chance
from lensprune.tasks.openbookqa import gold_option, option_texts
from lensprune.tasks.registry import register_task
from lensprune.tasks.sources import Dataset

__all__ = ["arc_challenge", "arc_easy"]


def _question(doc: Doc) -> str:
    return f"Question: {doc['question']}"


def _task(name: str, config: str, summary: str) -> Task:
    return Task(
        name=name,
        summary=summary,
        kind="knowledge",
        formats=three_protocols(
            _question, option_texts, gold_option, continuation_context=lambda doc: f"{_question(doc)}\nAnswer:"
        ),
        chance=uniform_chance(option_texts),
        load=Dataset(folder=name, columns=("question", "choices", "answerKey"), hub="allenai/ai2_arc", config=config),
        lm_eval={"continuation": name},
        licence="CC BY-SA 4.0",
        source="https://allenai.org/data/arc",
    )


@register_task
def arc_easy() -> Task:
    """lm-eval's ``arc_easy`` under ``continuation`` (acc_norm decides).

    ``default`` and ``generate`` show the question with options lettered in MMLU's form, whatever the row's labels.
    """
    return _task("arc_easy", "ARC-Easy", "science exam questions that simple methods can answer")


@register_task
def arc_challenge() -> Task:
    """lm-eval's ``arc_challenge`` under ``continuation`` (acc_norm decides); otherwise as `arc_easy`."""
    return _task("arc_challenge", "ARC-Challenge", "science exam questions that simple methods get wrong")
