"""SVAMP (Patel et al. 2021): one-step word problems with varied wording, in the chain-of-thought prompt."""

from __future__ import annotations

from decimal import Decimal

from lensprune.tasks.base import Doc, Task
from lensprune.tasks.gsm8k import (
    CHAIN_OF_THOUGHT_EXAMPLES,
    CHAIN_OF_THOUGHT_PATTERN,
    CHAIN_OF_THOUGHT_UNTIL,
    final_answer,
)
from lensprune.tasks.numeric import number_choices, number_generation, numeric_chance
from lensprune.tasks.registry import register_task
from lensprune.tasks.sources import Dataset

__all__ = ["svamp"]


def _answer(doc: Doc) -> str:
    if "Answer" not in doc:
        return final_answer(doc)
    number = Decimal(str(doc["Answer"]))
    return f"{number.to_integral_value()}" if number == number.to_integral_value() else f"{number.normalize():f}"


def _text(doc: Doc) -> str:
    return str(doc["question"]) if "question" in doc else f"{str(doc['Body']).strip()} {str(doc['Question']).strip()}"


def _question(doc: Doc) -> str:
    return f"Q: {_text(doc)}"


def _prompt(doc: Doc) -> str:
    return f"Q: {_text(doc)}\nA:"


@register_task
def svamp() -> Task:
    """SVAMP with the prompt of Wei et al. 2022: body and question after ``Q:``, and the eight examples of gsm8k_cot.

    lm-eval has no SVAMP; filters, exact match and stop strings are those of its gsm8k_cot (strict-match decides).
    """
    return Task(
        name="svamp",
        summary="one-step word problems, eight fixed chain-of-thought examples",
        kind="reasoning",
        formats={
            **number_choices(_question, _prompt, _answer),
            "generate": number_generation(
                _prompt,
                lambda doc: str(doc["target"]) if "target" in doc else _answer(doc),
                _answer,
                strict_pattern=CHAIN_OF_THOUGHT_PATTERN,
                until=CHAIN_OF_THOUGHT_UNTIL,
            ),
        },
        chance=numeric_chance,
        load=Dataset(folder="svamp", columns=("Body", "Question", "Answer"), hub="ChilleD/SVAMP"),
        default_shots=8,
        fewshot_sampler="first_n",
        fixed_fewshot=CHAIN_OF_THOUGHT_EXAMPLES,
        licence="MIT",
        source="https://github.com/arkilpatel/SVAMP",
    )
