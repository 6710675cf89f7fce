"""A registry that a test can add to, and a folder of made-up rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from lensprune.tasks import registry, task_names

RowsWriter = Callable[[str, str, Iterable[Mapping[str, Any]]], Path]


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The registered tasks, where what a test adds is forgotten after it."""
    task_names()
    builders = dict(registry._builders)
    monkeypatch.setattr(registry, "_builders", builders)
    return builders


@pytest.fixture
def write_rows(tmp_path: Path) -> RowsWriter:
    """Function: folder, split, rows → the written file below ``tmp_path``."""

    def write(folder: str, split: str, rows: Iterable[Mapping[str, Any]]) -> Path:
        path = tmp_path / folder / f"{split}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


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
