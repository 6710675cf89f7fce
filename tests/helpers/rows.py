"""Made-up rows in the schemas of real benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["REAL_TASKS", "RowsWriter", "gsm8k_row", "openbookqa_row"]

RowsWriter = Callable[[str, str, Iterable[Mapping[str, Any]]], Path]

REAL_TASKS = {
    "arc_challenge",
    "arc_easy",
    "boolq",
    "commonsense_qa",
    "gsm8k",
    "gsm8k_cot",
    "hellaswag",
    "kv_retrieval",
    "mathqa",
    "mmlu",
    "openbookqa",
    "openbookqa_open",
    "svamp",
    "winogrande",
}


def openbookqa_row(number: int) -> dict[str, Any]:
    """A made-up row in OpenBookQA's schema; its answer is option `number` modulo 4."""
    return {
        "id": f"row-{number}",
        "question_stem": f"Which thing has the number {number}",
        "choices": {"text": [f"thing {number}{letter}" for letter in "abcd"], "label": list("ABCD")},
        "answerKey": "ABCD"[number % 4],
        "fact1": f"thing {number} has a number",
    }


def gsm8k_row(number: int) -> dict[str, Any]:
    """A made-up row in GSM8K's schema; its answer is `number` + 2."""
    return {
        "question": f"Ann has {number} pens and buys 2. How many has she?",
        "answer": f"{number} + 2 = <<{number}+2={number + 2}>>{number + 2}\n#### {number + 2}",
    }
