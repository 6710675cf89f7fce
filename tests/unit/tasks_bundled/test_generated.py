"""Generated tasks: determinism, schema, and every worked step computed again."""

from __future__ import annotations

import json
import re
from fractions import Fraction

import pytest

from lensprune.errors import UserError
from lensprune.packaged import data_folder
from lensprune.protocols.requests import GenerateResponse
from lensprune.protocols.scoring import score_generation
from lensprune.tasks.base import GenerationFormat, MultipleChoiceFormat
from lensprune.tasks.bundled.arithmetic import generate_chains
from lensprune.tasks.bundled.kv_rows import generate_kv_rows
from lensprune.tasks.bundled.word_problem_templates import TEMPLATES
from lensprune.tasks.bundled.word_problems import FEWSHOT_SEED, TEST_SEED, generate_word_problems
from lensprune.tasks.loading import load_task
from lensprune.tasks.sources import read_rows

MARK = re.compile(r"<<(\d+)([-+*/])(\d+)=(\d+)>>(\d+)")


def test_word_problem_files_are_the_generators_output() -> None:
    folder = data_folder() / "word_problems"
    test = read_rows(folder / "test.jsonl")
    train = read_rows(folder / "train.jsonl")
    assert test == json.loads(json.dumps(generate_word_problems(8, TEST_SEED)))
    assert train == json.loads(json.dumps(generate_word_problems(1, FEWSHOT_SEED)))
    assert len(TEMPLATES) >= 40
    assert len(test) >= 300
    assert not {row["question"] for row in test} & {row["question"] for row in train}


def test_every_chain_of_steps_computes_and_ends_in_the_answer() -> None:
    for row in read_rows(data_folder() / "word_problems" / "test.jsonl"):
        marks = MARK.findall(row["answer"])
        assert len(marks) == row["steps"]
        for left, sign, right, value, shown in marks:
            a, b = Fraction(left), Fraction(right)
            expected = {"+": a + b, "-": a - b, "*": a * b, "/": a / b}[sign]
            assert expected == int(value) == int(shown)
        assert row["answer"].endswith(f"\n#### {marks[-1][3]}")


@pytest.mark.parametrize("largest", [5, 19, 99])
@pytest.mark.parametrize("subtract", [False, True])
@pytest.mark.parametrize("operands", [2, 3, 5])
def test_arithmetic_chains_stay_in_range(operands: int, subtract: bool, largest: int) -> None:
    for row in generate_chains(50, operands, largest, subtract, 3):
        parts = str(row["question"]).split()
        value = int(parts[0])
        for sign, number in zip(parts[1::2], parts[2::2], strict=True):
            value += int(number) if sign == "+" else -int(number)
            assert 0 <= value <= largest
        assert row["answer"] == str(value)
        assert str(row["steps"]).endswith(f"= {value}.")
        assert len(parts) == 2 * operands - 1


@pytest.mark.parametrize("keys", ["word", "uuid"])
def test_kv_rows_are_distinct_balanced_and_extend(keys: str) -> None:
    rows = generate_kv_rows(40, 10, keys, 1)
    assert rows[:7] == generate_kv_rows(7, 10, keys, 1)
    assert rows != generate_kv_rows(40, 10, keys, 2)
    places = []
    for row in rows:
        records = row["ordered_kv_records"]
        assert isinstance(records, list)
        assert len({k for k, _ in records}) == len({v for _, v in records}) == 10
        places.append(records.index([row["key"], row["value"]]))
    assert {places.count(p) for p in range(10)} <= {3, 4, 5}


def test_bad_parameters_are_named() -> None:
    with pytest.raises(UserError, match="word"):
        generate_kv_rows(1, 4, "wrod", 0)
    with pytest.raises(UserError, match="positive"):
        generate_kv_rows(1, 0, "word", 0)
    with pytest.raises(UserError, match="operands=1"):
        generate_chains(1, 1, 19, False, 0)


@pytest.mark.parametrize(
    "spec", ["facts", "facts_open", "facts[answer=letter]", "arithmetic", "arithmetic[operands=3]", "word_problems"]
)
def test_bundled_tasks_load_offline(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LENSPRUNE_OFFLINE", "1")
    loaded = load_task(spec, limit=5)
    assert len(loaded.items) == 5
    assert set(loaded.task.formats) == {"default", "continuation", "generate"}
    for item in loaded.items:
        assert len(item.fewshot) == loaded.shots
        for protocol in ("default", "continuation", "generate"):
            assert 0 <= loaded.task.chance(item.doc, protocol) < 1


@pytest.mark.parametrize(("spec", "shown"), [("arithmetic", 4), ("kv_retrieval[answer=text,ending=reopened]", 4)])
def test_text_answers_stand_in_a_line_above_the_question(spec: str, shown: int) -> None:
    task = load_task(spec, limit=5, shots=0)
    default, continuation = (task.task.formats[protocol] for protocol in ("default", "continuation"))
    assert isinstance(default, MultipleChoiceFormat)
    assert isinstance(continuation, MultipleChoiceFormat)
    for item in task.items:
        options = list(default.choices(item.doc))
        assert options == list(continuation.choices(item.doc))
        assert len(options) == shown
        line = f"Choose from: {', '.join(options)}.\n"
        assert line in default.context(item.doc)
        # Naming the options is the one difference between the two protocols.
        assert default.context(item.doc).replace(line, "") == continuation.context(item.doc)


@pytest.mark.parametrize("spec", ["arithmetic[answer=letter]", "kv_retrieval"])
def test_letter_answers_stand_below_the_question(spec: str) -> None:
    task = load_task(spec, limit=1, shots=0)
    default = task.task.formats["default"]
    assert isinstance(default, MultipleChoiceFormat)
    assert default.choices(task.items[0].doc) == ["A", "B", "C", "D"]
    assert default.context(task.items[0].doc).endswith("\nAnswer:")


@pytest.mark.parametrize("operands", [2, 3, 4])
def test_the_examples_own_answer_is_right_and_another_is_not(operands: int) -> None:
    loaded = load_task(f"arithmetic[operands={operands},subtract=True]", limit=20)
    fmt = loaded.task.formats["generate"]
    assert isinstance(fmt, GenerationFormat)
    for item in loaded.items:
        wrong = {**item.doc, "answer": str(int(str(item.doc["answer"])) + 10)}
        for doc, right in ((item.doc, True), (wrong, False)):
            response = GenerateResponse(" " + fmt.target(doc), (0,) * 10, "stop_string")
            assert score_generation(fmt, item, response).correct is right
