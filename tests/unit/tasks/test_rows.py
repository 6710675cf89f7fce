"""Rows as people have them: nulls, a byte-order mark, a JSON array, several files for a split."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import yaml

from lensprune.errors import UserError
from lensprune.tasks import load_task, prompt_strings
from lensprune.tasks.nulls import WatchedRow
from lensprune.tasks.sources import read_rows

ROW: dict[str, Any] = {"q": "1+1", "a": "2", "hint": None, "inner": {"note": None, "texts": ["x", "y"]}}


@pytest.fixture(autouse=True)
def _own_registry(own_registry: dict[str, Any]) -> None:
    """What a test registers is forgotten after it."""


def task_file(folder: Path, rows: list[dict[str, Any]], **changes: Any) -> str:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "task": "rows",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": "rows.jsonl"}},
        "test_split": "test",
        "doc_to_text": "{{q}}=",
        "doc_to_target": "a",
        **changes,
    }
    path = folder / "task.yaml"
    path.write_text(yaml.safe_dump(config))
    return str(path)


@pytest.mark.parametrize(
    ("changes", "column"),
    [
        ({"doc_to_text": "{{hint}}: {{q}}"}, "column 'hint'"),
        ({"doc_to_text": "{{ hint ~ q }}"}, "column 'hint'"),
        ({"doc_to_text": "{{ hint.strip() }}"}, "column 'hint'"),
        ({"doc_to_text": "{{ '%s' % hint }}"}, "column 'hint'"),
        ({"doc_to_text": "hint"}, "column 'hint'"),
        ({"doc_to_target": "hint"}, "column 'hint'"),
        ({"doc_to_target": "{{hint}}"}, "column 'hint'"),
        ({"doc_to_text": "{{ inner.note }}"}, "a value in the template"),
    ],
)
def test_a_null_is_never_asked(changes: dict[str, Any], column: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_task(task_file(tmp_path, [{**ROW, "hint": "x", "inner": {"note": "x"}}, ROW], **changes))
    assert "item 2 of" in str(caught.value)
    assert f"{column} is null" in str(caught.value)


def test_nan_is_a_null_and_a_null_option_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="column 'q' is null"):
        load_task(task_file(tmp_path, [{"q": float("nan"), "a": "2"}]))
    with pytest.raises(UserError, match="is null"):
        load_task(task_file(tmp_path, [{"q": "x", "o": ["a", None]}], doc_to_choice="o", doc_to_target=0))


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{% if hint is not none %}{{hint}}{% endif %}{{q}}", "1+1"),
        ("{{ hint or '' }}{{q}}", "1+1"),
        ("{{ hint|default('-', true) }}{{q}}", "-1+1"),
        ("{% if hint == none %}no {% endif %}{{q}}", "no 1+1"),
    ],
)
def test_a_null_that_the_template_expects_is_none(template: str, expected: str, tmp_path: Path) -> None:
    loaded = load_task(task_file(tmp_path, [ROW], doc_to_text=template))
    assert prompt_strings(loaded.task.formats["generate"], loaded.items[0])[0][0] == expected


def test_a_built_in_task_names_row_and_column(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "gsm8k").mkdir(parents=True)
    rows = [{"question": "How many?", "answer": "#### 3"}, {"question": None, "answer": "#### 4"}]
    (data / "gsm8k" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=r"item 2 of .*test\.jsonl cannot be used .*column 'question' is null"):
        load_task("gsm8k", data_dir=data, shots=0)


def test_a_watched_row_is_the_row_otherwise() -> None:
    row = WatchedRow(ROW)
    assert row == ROW
    assert {**row} == ROW
    assert row.get("hint", "x") is None
    assert row["inner"]["texts"] == ["x", "y"]
    with pytest.raises(ValueError, match=r"column 'inner\.note' is null"):
        row["inner"]["note"]


ROWS = [{"q": "1", "a": "x"}, {"q": "2", "a": "y"}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


@pytest.mark.parametrize(
    "text",
    [
        LINES,
        f"\ufeff{LINES}",
        json.dumps(ROWS),
        "\ufeff" + json.dumps(ROWS, indent=2),
        LINES.replace("\n", "\r\n\r\n"),
        LINES.rstrip(),
    ],
)
def test_files_as_other_programs_write_them(text: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(text.encode())
    assert read_rows(path) == ROWS


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[1, 2]", "element 1 is a JSON int"),
        ("[]", "contains no rows"),
        ('[{"q": 1},\n{"q": ]', "not JSON .* line 2"),
        ("[" * 100_000, "can't be read|not JSON"),
    ],
)
def test_an_array_that_is_no_list_of_rows(text: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(UserError, match=reason):
        read_rows(path)


def test_several_files_for_a_split_are_read_in_order(tmp_path: Path) -> None:
    (tmp_path / "more.json").write_text(json.dumps([{"q": "9", "a": "z"}]))
    files = {"data_files": {"test": ["rows.jsonl", "more.json"]}}
    loaded = load_task(task_file(tmp_path, ROWS, dataset_kwargs=files))
    assert [item.doc["a"] for item in loaded.items] == ["x", "y", "z"]
    assert loaded.data_source == f"{tmp_path / 'rows.jsonl'}, {tmp_path / 'more.json'}"


def test_a_data_folder_may_hold_json_arrays(tmp_path: Path) -> None:
    (tmp_path / "data" / "rows").mkdir(parents=True)
    (tmp_path / "data" / "rows" / "test.json").write_text(json.dumps(ROWS[1:]))
    loaded = load_task(task_file(tmp_path, ROWS), data_dir=tmp_path / "data")
    assert [item.doc["a"] for item in loaded.items] == ["y"]


def test_rows_in_both_splits_are_counted_and_left_out_on_request(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shots = [{"q": "9", "a": "z"}, ROWS[1]]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in shots))
    files = {"data_files": {"test": "rows.jsonl", "train": "train.jsonl"}}
    path = task_file(tmp_path, ROWS, dataset_kwargs=files, training_split="train", num_fewshot=2)
    with caplog.at_level(logging.WARNING, "lensprune"):
        assert [item.id for item in load_task(path).items] == ["0", "1"]
        assert [item.id for item in load_task(path, leave_out_repeated=True).items] == ["0"]
        assert len(caplog.messages) == 2
        load_task(path, shots=0)
    kept, left_out = caplog.messages
    assert "1 of 2 items are among their own few-shot examples" in kept
    assert kept.endswith("are kept; the first is item 1")
    assert left_out.endswith("are left out; the first is item 1")
