"""What is stored of the questions: what the protocol sends, whole, and nothing that does not fit the spec."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from lensprune.errors import LensPruneError, UserError
from lensprune.protocols import build_requests
from lensprune.runs.questions import (
    Question,
    question_table,
    questions_from_parquet,
    questions_hash,
    questions_to_parquet,
)
from lensprune.runs.store import RunStore
from lensprune.tasks.filters import AnyOf
from tests.helpers.made_cells import questions, spec
from tests.helpers.toy_task import TOKENIZER, choice_format, generation_format, loaded, model

PLACE = ("t", "default")
CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"


def asked_under(protocol: str, chat_template: bool = False, **formats: Any) -> tuple[list[Any], list[Question]]:
    """The requests of the toy task, and what is stored of them."""
    task, its_model = loaded(**formats), model()
    if chat_template:
        its_model.tokenizer = type(TOKENIZER)(tokenizer_object=TOKENIZER.backend_tokenizer, chat_template=CHAT)
    items = build_requests(its_model, task, protocol, chat_template=chat_template)
    return items, [Question.from_row(row) for row in question_table(task, protocol, items).to_pylist()]


@pytest.mark.parametrize("chat_template", [False, True])
@pytest.mark.parametrize(
    "choice", [choice_format(), choice_format(continuation=lambda doc: "is the answer.", target_delimiter=" ")]
)
def test_prompt_and_option_are_the_text_that_is_sent(choice: Any, chat_template: bool) -> None:
    items, stored = asked_under("continuation", chat_template, choice=choice)
    assert [question.item_id for question in stored] == ["0", "1"]
    for item, question in zip(items, stored, strict=True):
        assert "Q: 0+1?" in question.prompt
        assert len(question.options) == 2
        for prompt, request, option, unscored, tokens in zip(
            item.prompts,
            item.requests,
            question.options,
            question.option_context,
            question.option_tokens,
            strict=True,
        ):
            assert question.prompt + option == prompt.context + prompt.continuation
            assert option[unscored:] == prompt.continuation
            assert tokens == len(request.continuation_ids)


def test_options_that_are_contexts_begin_with_a_whole_word() -> None:
    docs = ({"q": "?", "options": ["He met Sam Hill", "He met Sally"], "gold": 1},)
    choice = choice_format(continuation=lambda doc: "today.", context=lambda doc: "")
    _, [question] = asked_under("continuation", docs=docs, choice=choice)
    assert question.prompt.endswith("He met ")
    assert question.options == ("Sam Hill today.", "Sally today.")
    assert question.option_context == (len("Sam Hill"), len("Sally"))
    assert question.reference == ("He met Sally",)


def test_lengths_are_those_that_metrics_divide_by() -> None:
    docs = ({"q": "?", "options": ["éé", "abc"], "gold": 1},)
    _, [question] = asked_under("continuation", docs=docs)
    assert question.options == (" éé", " abc")
    assert (question.gold, question.reference) == (1, ("abc",))
    assert question.option_characters == (2, 3)
    assert question.option_bytes == (4, 3)


def test_a_generation_has_no_options_and_every_right_answer() -> None:
    generation = generation_format(target=lambda doc: AnyOf(["two", "2"]))
    items, stored = asked_under("generate", generation=generation)
    for item, question in zip(items, stored, strict=True):
        assert question.prompt == item.prompts[0].context
        assert (question.options, question.gold, question.option_tokens) == ((), None, ())
        assert question.reference == ("two", "2")


def test_a_right_option_that_is_none_is_refused_before_anything_runs() -> None:
    with pytest.raises(UserError, match=r"item 0.*index 3.*2 options"):
        asked_under("continuation", choice=choice_format(gold=lambda doc: 0 if doc["q"] == "0+1?" else 3))


@pytest.mark.parametrize("column", questions(1).column_names)
def test_the_hash_sees_every_column(column: str) -> None:
    table = questions(3)
    value: Any = table.column(column)[1].as_py()
    changed = [*value, value[0]] if isinstance(value, list) else f"{value}!" if isinstance(value, str) else value + 1
    rows = table.to_pylist()
    rows[1][column] = changed
    other = pa.Table.from_pylist(rows, schema=table.schema)
    assert questions_hash(other) != questions_hash(table)
    assert questions_hash(questions_from_parquet(questions_to_parquet(table))) == questions_hash(table)


def test_a_file_holds_shared_examples_once() -> None:
    examples = "".join(f"Q: {i * 7919 % 10007}?\nA: {i * 104729 % 10007}\n\n" for i in range(200))
    alone = questions_to_parquet(questions(1, examples))
    many = questions_to_parquet(questions(500, examples))
    assert len(examples) > 3000
    assert len(many) < len(alone) + 500 * 40


def question_files(folder: Path) -> list[Path]:
    return list((folder / "questions").iterdir())


def test_questions_are_written_once_and_read_back(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with RunStore.writing(folder, spec()) as store:
        store.keep_questions({PLACE: questions(4)})
        (path,) = question_files(folder)
        before = path.stat().st_mtime_ns
    with RunStore.writing(folder, spec()) as store:
        store.keep_questions({PLACE: questions(4)})
        assert store.set_aside == []
    assert [p.stat().st_mtime_ns for p in question_files(folder)] == [before]
    assert RunStore.open(folder).questions(*PLACE).equals(questions(4))


def test_other_questions_are_not_stored_and_a_run_without_them_says_so(tmp_path: Path) -> None:
    with RunStore.writing(tmp_path / "run", spec()) as store, pytest.raises(LensPruneError, match="not those of"):
        store.keep_questions({PLACE: questions(4, "Another?")})
    with pytest.raises(UserError, match=r"lacks the questions of t under default: lensprune resume"):
        RunStore.open(tmp_path / "run").questions(*PLACE)


def test_damaged_questions_are_set_aside_and_written_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with RunStore.writing(folder, spec()) as store:
        store.keep_questions({PLACE: questions(4)})
    (path,) = question_files(folder)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"damaged .*lensprune resume"):
        RunStore.open(folder)
    assert not RunStore.is_complete(folder)
    with RunStore.writing(folder, spec()) as store:
        assert store.set_aside == [path.name]
        store.keep_questions({PLACE: questions(4)})
    assert RunStore.open(folder).questions(*PLACE).equals(questions(4))


def test_questions_exchanged_behind_the_specs_back_are_noticed(tmp_path: Path) -> None:
    folder, other = tmp_path / "run", tmp_path / "other"
    for place, table in ((folder, questions(4)), (other, questions(4, "Another?"))):
        cell = replace(spec().conditions[0], questions_hash=questions_hash(table))
        with RunStore.writing(place, spec(conditions=(cell,))) as store:
            store.keep_questions({PLACE: table})
    (path,), (stranger,) = question_files(folder), question_files(other)
    path.unlink()
    stranger.rename(folder / "questions" / stranger.name)
    with pytest.raises(UserError, match=r"contains questions other than the run's: lensprune resume"):
        RunStore.open(folder).questions(*PLACE)
    assert not RunStore.is_complete(folder)
    with RunStore.writing(folder, spec()) as store:
        store.keep_questions({PLACE: questions(4)})
        assert store.set_aside == [stranger.name]
    assert RunStore.open(folder).questions(*PLACE).equals(questions(4))
