"""Prompts written out, and the hash that stands for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lensprune.errors import UserError
from lensprune.tasks import LoadedTask, build_context, load_task, prompt_hash, prompt_strings
from lensprune.tasks.base import GenerationFormat
from tests.helpers.rows import RowsWriter, gsm8k_row, openbookqa_row


@pytest.fixture
def folder(tmp_path: Path, write_rows: RowsWriter) -> Path:
    write_rows("gsm8k", "test", [gsm8k_row(number) for number in range(4)])
    write_rows("gsm8k", "train", [gsm8k_row(number) for number in range(50, 60)])
    write_rows("openbookqa", "test", [openbookqa_row(number) for number in range(4)])
    write_rows("openbookqa", "train", [openbookqa_row(9)])
    write_rows(
        "winogrande",
        "validation",
        [{"sentence": "Al met Bo, so _ waved.", "option1": "Al", "option2": "Bo", "answer": "2"}],
    )
    return tmp_path


def test_letters(folder: Path) -> None:
    loaded = load_task("openbookqa", data_dir=folder, limit=1, items="first", shots=1)
    shown = "A. thing 9a\nB. thing 9b\nC. thing 9c\nD. thing 9d\nAnswer:"
    asked = "A. thing 0a\nB. thing 0b\nC. thing 0c\nD. thing 0d\nAnswer:"
    expected = f"Which thing has the number 9\n{shown} B\n\nWhich thing has the number 0\n{asked}"
    for protocol in ("default", "generate"):
        assert build_context(loaded.task.formats[protocol], loaded.items[0]) == expected
    assert prompt_strings(loaded.task.formats["default"], loaded.items[0]) == tuple(
        (expected, f" {letter}") for letter in "ABCD"
    )
    assert prompt_strings(loaded.task.formats["generate"], loaded.items[0]) == ((expected, ""),)


def test_option_text(folder: Path) -> None:
    loaded = load_task("openbookqa", data_dir=folder, limit=1, items="first", shots=1)
    expected = "Which thing has the number 9 thing 9b\n\nWhich thing has the number 0"
    assert prompt_strings(loaded.task.formats["continuation"], loaded.items[0]) == tuple(
        (expected, f" thing 0{letter}") for letter in "abcd"
    )


def test_open_book_shows_the_fact_of_examples_too(folder: Path) -> None:
    loaded = load_task("openbookqa_open", data_dir=folder, limit=1, items="first", shots=1)
    assert build_context(loaded.task.formats["continuation"], loaded.items[0]) == (
        "thing 9 has a number\nWhich thing has the number 9 thing 9b\n\n"
        "thing 0 has a number\nWhich thing has the number 0"
    )


def test_partial_scoring(folder: Path) -> None:
    loaded = load_task("winogrande", data_dir=folder)
    assert prompt_strings(loaded.task.formats["continuation"], loaded.items[0]) == (
        ("Al met Bo, so Al", " waved."),
        ("Al met Bo, so Bo", " waved."),
    )


def test_worked_steps_and_bare_numbers(folder: Path) -> None:
    loaded = load_task("gsm8k", data_dir=folder, limit=1, items="first", shots=1)
    (example,) = loaded.items[0].fewshot
    asked = "Question: Ann has 0 pens and buys 2. How many has she?\nAnswer:"
    assert build_context(loaded.task.formats["generate"], loaded.items[0]) == (
        f"Question: {example['question']}\nAnswer: {example['answer']}\n\n{asked}"
    )
    number = example["answer"].split("#### ")[1]
    assert build_context(loaded.task.formats["continuation"], loaded.items[0]) == (
        f"Question: {example['question']}\nAnswer: {number}\n\n{asked}"
    )


def test_hash_is_the_same_for_the_same_prompts(folder: Path) -> None:
    hashes = {prompt_hash(load_task("gsm8k", data_dir=folder, shots=2), "generate") for _ in range(2)}
    (only,) = hashes
    assert len(only) == 64
    assert int(only, 16) > 0


def _changed_answer(loaded: LoadedTask) -> LoadedTask:
    first = loaded.items[0]
    doc = {**first.doc, "answer": f"{first.doc['answer']}0"}
    return replace(loaded, items=(replace(first, doc=doc), *loaded.items[1:]))


def _changed_format(loaded: LoadedTask, **changes: object) -> LoadedTask:
    fmt = loaded.task.formats["generate"]
    assert isinstance(fmt, GenerationFormat)
    formats = {**loaded.task.formats, "generate": replace(fmt, **changes)}
    return replace(loaded, task=replace(loaded.task, formats=formats))


def test_hash_follows_everything_that_is_asked(folder: Path) -> None:
    loaded = load_task("gsm8k", data_dir=folder, shots=2)
    first = loaded.items[0]
    variants = [
        loaded,
        load_task("gsm8k", data_dir=folder, shots=2, limit=3),
        load_task("gsm8k", data_dir=folder, shots=1),
        load_task("gsm8k", data_dir=folder, shots=2, seed=1),
        replace(loaded, items=(replace(first, id="other"), *loaded.items[1:])),
        replace(loaded, items=loaded.items[::-1]),
        _changed_answer(loaded),
        _changed_format(loaded, until=("\n",)),
        _changed_format(loaded, max_new_tokens=1),
        _changed_format(loaded, target_delimiter=""),
    ]
    hashes = [prompt_hash(variant, "generate") for variant in variants]
    hashes += [prompt_hash(loaded, protocol) for protocol in ("default", "continuation")]
    assert len(set(hashes)) == len(hashes)


def test_unknown_protocol_names_the_nearest(folder: Path) -> None:
    loaded = load_task("gsm8k", data_dir=folder, limit=1)
    with pytest.raises(UserError, match=r"unknown protocol of task 'gsm8k' 'generat'.*generate"):
        prompt_hash(loaded, "generat")  # type: ignore[arg-type]
