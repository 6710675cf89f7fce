"""Rows from local files, and one clear line for each way in which they can be wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from lensprune.errors import UserError
from lensprune.tasks import load_task
from lensprune.tasks.sources import hub_rows, read_rows, require_columns
from tests.helpers.rows import RowsWriter, gsm8k_row, openbookqa_row


def test_blank_lines_are_skipped_and_order_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('\n{"a": 1}\n\n  \n{"a": "é"}', encoding="utf-8")
    assert read_rows(path) == [{"a": 1}, {"a": "é"}]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", r"contains no rows"),
        (b"\n \n", r"contains no rows"),
        (b'{"a": 1}\n\n{"a": }\n', r"line 3 is not JSON"),
        (b'{"a": 1}\nplain text\n', r"line 2 is not JSON"),
        (b'{"a": 1} {"b": 2}\n', r"line 1 is not JSON"),
        (b'{"a": 1}\n[1, 2]\n', r"line 2 holds a JSON list, expected an object"),
        (b"7\n", r"line 1 holds a JSON int"),
        (b'{"a": "\xff"}\n', r"not UTF-8"),
    ],
)
def test_a_broken_file_is_named_with_its_line(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=reason) as caught:
        read_rows(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such file$"):
        read_rows(tmp_path / "absent.jsonl")
    (tmp_path / "absence.jsonl").touch()
    with pytest.raises(UserError, match=r"no such file; did you mean .*absence\.jsonl\?"):
        read_rows(tmp_path / "absent.jsonl")
    with pytest.raises(UserError, match=r"no such file$"):
        read_rows(tmp_path / "nowhere" / "absent.jsonl")
    with pytest.raises(UserError, match="cannot be read"):
        read_rows(tmp_path)


def test_missing_column_names_row_and_nearest_column() -> None:
    rows = [{"question": "", "answer": ""}, {"question": "", "anwser": ""}]
    with pytest.raises(UserError, match=r"here: row 2 has no column 'answer'.*nearest is 'anwser'"):
        require_columns(rows, ["question", "answer"], "here")


@pytest.mark.parametrize("column", ["question_stem", "choices", "answerKey"])
def test_a_task_checks_its_columns(column: str, tmp_path: Path, write_rows: RowsWriter) -> None:
    rows = [openbookqa_row(number) for number in range(3)]
    del rows[1][column]
    write_rows("openbookqa", "test", rows)
    with pytest.raises(UserError, match=rf"test\.jsonl: row 2 has no column '{column}'"):
        load_task("openbookqa", data_dir=tmp_path)


def test_only_the_open_book_needs_the_fact(tmp_path: Path, write_rows: RowsWriter) -> None:
    row = openbookqa_row(0)
    del row["fact1"]
    write_rows("openbookqa", "test", [row])
    assert len(load_task("openbookqa", data_dir=tmp_path).items) == 1
    with pytest.raises(UserError, match="no column 'fact1'"):
        load_task("openbookqa_open", data_dir=tmp_path)


def test_a_broken_few_shot_file_is_read_only_when_needed(tmp_path: Path, write_rows: RowsWriter) -> None:
    write_rows("openbookqa", "test", [openbookqa_row(0)])
    (tmp_path / "openbookqa" / "train.jsonl").write_text("not JSON\n")
    assert len(load_task("openbookqa", data_dir=tmp_path, shots=0).items) == 1
    with pytest.raises(UserError, match=r"train\.jsonl: line 1 is not JSON"):
        load_task("openbookqa", data_dir=tmp_path, shots=1)


def test_splits(tmp_path: Path, write_rows: RowsWriter) -> None:
    write_rows("gsm8k", "test", [gsm8k_row(1)])
    write_rows("gsm8k", "hard", [gsm8k_row(100)])
    source = load_task("gsm8k", data_dir=tmp_path, shots=0).data_source
    assert source == str(tmp_path / "gsm8k" / "test.jsonl")
    assert load_task("gsm8k", data_dir=tmp_path, shots=0, split="hard").items[0].doc == gsm8k_row(100)
    with pytest.raises(UserError, match=r"no dev\.jsonl; splits there: hard, test"):
        load_task("gsm8k", data_dir=tmp_path, shots=0, split="dev")


def test_folder_without_the_split(tmp_path: Path, write_rows: RowsWriter) -> None:
    write_rows("gsm8k", "other", [gsm8k_row(1)])
    with pytest.raises(UserError, match=r"expected test\.jsonl; splits there: other"):
        load_task("gsm8k", data_dir=tmp_path, shots=0)


def test_data_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_task("gsm8k", data_dir=tmp_path / "absent")


def test_offline_never_asks_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LENSPRUNE_OFFLINE", "1")
    with pytest.raises(UserError, match=r"LENSPRUNE_OFFLINE is set.*--data-dir"):
        hub_rows("owner/name", None, "test")
    with pytest.raises(UserError, match=r"LENSPRUNE_OFFLINE is set.*openai/gsm8k"):
        load_task("gsm8k", data_dir=tmp_path)


def test_a_folder_too_high_names_the_right_one(tmp_path: Path, write_rows: RowsWriter) -> None:
    write_rows("gsm8k", "test", [gsm8k_row(1)])
    with pytest.raises(UserError, match=rf"has no gsm8k/, but {tmp_path} has"):
        load_task("gsm8k", data_dir=tmp_path.parent, shots=0)


def test_a_data_folder_without_the_task_is_named_when_the_hub_fails_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    def away(*args: object, **kwargs: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setenv("LENSPRUNE_OFFLINE", "0")
    monkeypatch.setattr(datasets, "load_dataset", away)
    with pytest.raises(UserError, match=rf"{tmp_path} has no gsm8k/; openai/gsm8k .* cannot be loaded .*no route"):
        load_task("gsm8k", data_dir=tmp_path)
