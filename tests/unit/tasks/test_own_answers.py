"""A reference that its own filters mark wrong is counted, named, and refused where there are many."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import yaml

from lensprune.errors import UserError
from lensprune.tasks import GenerationFormat, get_task, load_task
from lensprune.tasks.own_answers import can_be_right
from tests.helpers.toy_task import generation_format


@pytest.fixture(autouse=True)
def _own_registry(own_registry: dict[str, Any]) -> None:
    """What a test registers is forgotten after it."""


def gsm8k(folder: Path, answers: list[str]) -> Path:
    folder = folder / "data"
    (folder / "gsm8k").mkdir(parents=True)
    rows = [{"question": f"How many, {i}?", "answer": f"It follows.\n#### {a}"} for i, a in enumerate(answers)]
    (folder / "gsm8k" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize("answer", ["1,234.50", "$1,000", "7", "-3"])
def test_a_number_that_a_filter_reads_is_right(answer: str, tmp_path: Path) -> None:
    loaded = load_task("gsm8k", data_dir=gsm8k(tmp_path, [answer]), shots=0)
    fmt = loaded.task.formats["generate"]
    assert isinstance(fmt, GenerationFormat)
    assert can_be_right(fmt, loaded.items[0].doc)


@pytest.mark.parametrize("answer", ["50%", "１２", "٣"])
def test_a_number_that_no_filter_reads_is_refused(answer: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"1 of 1 items is wrong by the task's own filters .* the first is item 0"):
        load_task("gsm8k", data_dir=gsm8k(tmp_path, [answer]), shots=0)


def test_few_are_counted_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    answers = [str(number) for number in range(19)]
    answers.insert(3, "50%")
    with caplog.at_level(logging.WARNING, "lensprune"):
        assert len(load_task("gsm8k", data_dir=gsm8k(tmp_path, answers), shots=0).items) == 20
    (message,) = caplog.messages
    assert "the reference of 1 of 20 items" in message
    assert "item 3: 'It follows.\\n#### 50%' (strict-match finds '50', flexible-extract finds '50')" in message


@pytest.mark.parametrize(
    ("pattern", "answer", "right"),
    [
        (r"The answer is (\-?[0-9\.\,]+).", "18", True),
        (r"(?i)(?:final|last)\s+answer\s*[:=]\s*\*{0,2}(\w+)", "18", True),
        (r"the answer is \(?([A-E])\)?", "C", True),
        (r"^(?:so|thus): (?P<n>[0-9]+)$", "5", True),
        (r"answer: ([0-9]+)", "five", False),
        (r"answer: ([0-9]+)", "٣", False),
        (r"[0-9]+", "50%", False),
        (r"-?[0-9]+", "-50", True),
        (r"(?<=answer: )(\w+)", "two words", True),
    ],
)
def test_a_filter_may_wait_for_a_phrase(pattern: str, answer: str, right: bool, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"q": "x", "a": answer}) + "\n")
    path = tmp_path / "task.yaml"
    step = {"function": "regex", "regex_pattern": pattern}
    config = {
        "task": "phrases",
        "dataset_kwargs": {"data_files": {"test": "rows.jsonl"}},
        "test_split": "test",
        "doc_to_text": "q",
        "doc_to_target": "a",
        "filter_list": [{"name": "f", "filter": [step, {"function": "take_first"}]}],
    }
    path.write_text(yaml.safe_dump(config))
    if right:
        assert load_task(str(path)).items
    else:
        with pytest.raises(UserError, match="wrong by the task's own filters"):
            load_task(str(path))


def test_filters_in_python_are_taken_on_trust() -> None:
    class LastWord:
        name = "strict"

        def __call__(self, text: str) -> str | None:
            return text.split("=")[1] if "=" in text else None

    assert can_be_right(generation_format(filters=(LastWord(),)), {"options": ["three", "four"], "gold": 1})


@pytest.mark.parametrize("name", ["arithmetic", "arithmetic[operands=3]", "facts", "kv_retrieval", "word_problems"])
def test_the_bundled_tasks_own_answers_are_right(name: str) -> None:
    loaded = load_task(name, limit=50)
    fmt = loaded.task.formats["generate"]
    assert isinstance(fmt, GenerationFormat)
    assert all(can_be_right(fmt, item.doc) for item in loaded.items)
    assert get_task(name).name == loaded.task.name
