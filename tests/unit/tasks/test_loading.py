"""Limits, shots, seeds and items."""

from __future__ import annotations

from pathlib import Path

import pytest

from lensprune.errors import UserError
from lensprune.tasks import load_task
from tests.helpers.rows import RowsWriter, gsm8k_row, openbookqa_row


@pytest.fixture
def folder(tmp_path: Path, write_rows: RowsWriter) -> Path:
    """Ten evaluated and six few-shot rows of gsm8k and openbookqa."""
    for name, row in (("gsm8k", gsm8k_row), ("openbookqa", openbookqa_row)):
        write_rows(name, "test", [row(number) for number in range(10)])
        write_rows(name, "train", [row(number) for number in range(100, 106)])
    return tmp_path


@pytest.mark.parametrize("limit", [0, -1])
def test_limit_below_one(limit: int, folder: Path) -> None:
    with pytest.raises(UserError, match=rf"limit {limit} .*expected 1 or more"):
        load_task("gsm8k", data_dir=folder, limit=limit)


def test_negative_shots(folder: Path) -> None:
    with pytest.raises(UserError, match=r"shots -1 .*expected 0 or more"):
        load_task("gsm8k", data_dir=folder, shots=-1)


def test_the_first_rows(folder: Path) -> None:
    loaded = load_task("gsm8k", data_dir=folder, limit=3, items="first")
    assert [item.doc for item in loaded.items] == [gsm8k_row(0), gsm8k_row(1), gsm8k_row(2)]
    assert [item.id for item in loaded.items] == ["0", "1", "2"]
    assert len(load_task("gsm8k", data_dir=folder, limit=11).items) == 10, "a limit above the rows takes all"


def test_a_limit_leaves_the_items_that_it_keeps_as_they_are(folder: Path) -> None:
    everything = load_task("gsm8k", data_dir=folder, shots=2)
    assert load_task("gsm8k", data_dir=folder, shots=2, limit=4, items="first").items == everything.items[:4]
    drawn = load_task("gsm8k", data_dir=folder, shots=2, limit=4).items
    assert all(item in everything.items for item in drawn)
    assert drawn != everything.items[:4]


def test_default_shots(folder: Path) -> None:
    assert load_task("gsm8k", data_dir=folder, limit=1).shots == 5
    assert load_task("openbookqa", data_dir=folder, limit=1).shots == 0
    assert load_task("openbookqa", data_dir=folder, limit=1).items[0].fewshot == ()


def test_examples_come_from_the_few_shot_split_and_follow_the_seed(folder: Path) -> None:
    first, again, other = (load_task("gsm8k", data_dir=folder, shots=3, seed=seed).items for seed in (0, 0, 1))
    assert first == again
    assert [item.doc for item in first] == [item.doc for item in other], "the seed draws examples, not items"
    assert [item.fewshot for item in first] != [item.fewshot for item in other]
    train = [gsm8k_row(number) for number in range(100, 106)]
    for item in first:
        assert len(item.fewshot) == 3
        assert all(example in train for example in item.fewshot)
        assert len({example["question"] for example in item.fewshot}) == 3


@pytest.mark.parametrize("shots", [7, 100])
def test_more_shots_than_there_are(shots: int, folder: Path) -> None:
    assert load_task("gsm8k", data_dir=folder, shots=6).shots == 6
    with pytest.raises(UserError, match=rf"task 'gsm8k': {shots} shots need {shots} .*there are 6"):
        load_task("gsm8k", data_dir=folder, shots=shots)


def test_more_shots_than_fixed_examples(folder: Path) -> None:
    loaded = load_task("gsm8k_cot", data_dir=folder)
    assert [item.fewshot for item in loaded.items] == [loaded.fewshot_pool] * 10, "the same eight for all items"
    assert loaded.shots == len(loaded.fewshot_pool) == 8
    with pytest.raises(UserError, match=r"9 shots need 9 .*there are 8"):
        load_task("gsm8k_cot", data_dir=folder, shots=9)


def test_without_a_few_shot_split_an_item_never_sees_itself(tmp_path: Path, write_rows: RowsWriter) -> None:
    write_rows("gsm8k", "test", [gsm8k_row(number) for number in range(5)])
    for item in load_task("gsm8k", data_dir=tmp_path, shots=4).items:
        assert len(item.fewshot) == 4
        assert item.doc not in item.fewshot
    with pytest.raises(UserError, match=r"5 shots need 6 .*one more is drawn.*there are 5"):
        load_task("gsm8k", data_dir=tmp_path, shots=5)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("answerKey", "E", r"item 2 of .*test\.jsonl cannot be used \(ValueError"),
        ("choices", {"text": ["one"], "label": ["B"]}, r"1 options, expected 2 or more"),
        ("choices", {"label": ["A", "B"]}, r"unknown column 'choices\.text': did you mean choices\.label\?"),
        ("choices", {"text": [1, 2], "label": ["A", "B"]}, r"the option is int, expected text"),
    ],
)
def test_a_row_that_cannot_be_asked(
    key: str, value: object, reason: str, tmp_path: Path, write_rows: RowsWriter
) -> None:
    write_rows("openbookqa", "test", [openbookqa_row(0), {**openbookqa_row(1), key: value}])
    with pytest.raises(UserError, match=reason):
        load_task("openbookqa", data_dir=tmp_path)


def test_an_answer_without_its_mark(tmp_path: Path, write_rows: RowsWriter) -> None:
    write_rows("gsm8k", "test", [gsm8k_row(0), {"question": "How many?", "answer": "twelve"}])
    with pytest.raises(UserError, match=r"item 2 of .*no '####'"):
        load_task("gsm8k", data_dir=tmp_path, shots=0)


def test_subjects_of_mmlu_count_one_by_one(tmp_path: Path, write_rows: RowsWriter) -> None:
    def row(subject: str, number: int) -> dict[str, object]:
        return {"question": f"{subject} {number}?", "subject": subject, "choices": list("wxyz"), "answer": number % 4}

    write_rows("mmlu", "test", [row(subject, number) for number in range(4) for subject in ("anatomy", "virology")])
    write_rows("mmlu", "dev", [row(subject, number) for subject in ("virology", "anatomy") for number in range(90, 95)])
    loaded = load_task("mmlu", data_dir=tmp_path, limit=2, items="first", shots=2)
    assert [item.id for item in loaded.items] == ["anatomy/0", "virology/0", "anatomy/1", "virology/1"]
    for item in loaded.items:
        assert item.cluster == item.doc["subject"]
        assert list(item.fewshot) == [row(str(item.cluster), 90), row(str(item.cluster), 91)], (
            "the first of its subject"
        )
    one = load_task("mmlu[subject=virology]", data_dir=tmp_path, shots=0)
    assert [item.id for item in one.items] == [f"virology/{number}" for number in range(4)]
    assert one.task.name == "mmlu[subject=virology]"
    with pytest.raises(UserError, match="none of its 8 rows belong to this task"):
        load_task("mmlu[subject=prehistory]", data_dir=tmp_path, shots=0)
    with pytest.raises(UserError, match=r"anatomy: 6 shots need 6 .*there are 5"):
        load_task("mmlu", data_dir=tmp_path, shots=6)


@pytest.mark.parametrize("answer", [-1, 4])
def test_an_answer_that_is_no_option(answer: int, tmp_path: Path, write_rows: RowsWriter) -> None:
    row = {"question": "Which?", "subject": "anatomy", "choices": list("wxyz"), "answer": answer}
    write_rows("mmlu", "test", [row])
    with pytest.raises(UserError, match=rf"item 1 of .*answer {answer} is not one of the 4 options"):
        load_task("mmlu", data_dir=tmp_path, shots=0)
