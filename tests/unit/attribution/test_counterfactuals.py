"""Counterfactual rows change the answer and nothing that is not needed for it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from random import Random

import pytest

from lensprune.attribution import PromptPair, counterfactual_pairs, pair_from_texts
from lensprune.attribution.counterfactuals import other_operand, other_value
from lensprune.errors import UserError
from lensprune.tasks.bundled.arithmetic import generate_chains
from lensprune.tasks.bundled.kv_rows import generate_kv_rows
from tests.helpers.planted.circuits import model_of
from tests.helpers.tiny_models import tiny

DRAWN = ["3252", "3e2c2888-fd4a-8177-185f-b2c111fe1d47"]


@pytest.mark.parametrize("keys", ["word", "uuid"])
def test_another_value_at_the_asked_key(keys: str) -> None:
    for row in generate_kv_rows(20, 5, keys):
        changed = other_value(row, Random(1))
        assert changed["key"] == row["key"]
        assert changed["value"] != row["value"]
        assert len(changed["value"]) == len(row["value"])
        for (key, before), (same, after) in zip(row["ordered_kv_records"], changed["ordered_kv_records"], strict=True):
            assert key == same
            assert after == (changed["value"] if key == row["key"] else before)
        assert changed["value"] not in [value for _, value in row["ordered_kv_records"]]


def test_values_of_uuids_and_numbers_are_drawn_as_ever() -> None:
    """Pairs of a seed stay the same, and so do results that rest on them."""
    drawn = [other_value(generate_kv_rows(1, 5, keys)[0], Random(1))["value"] for keys in ("word", "uuid")]
    assert drawn == DRAWN


@pytest.mark.parametrize(
    ("value", "make"),
    [
        ("Tokyo", "[A-Z][a-z]{4}"),
        ("LHR 42", "[A-Z]{3} [1-9]{2}"),
        ("gate-7b", "[a-z]{4}-[1-9][a-z]"),
        ("A1F0", "([A-Z][1-9]){2}"),
    ],
)
def test_another_value_of_any_make(value: str, make: str) -> None:
    row = {"ordered_kv_records": [["k", value], ["j", "Osaka"]], "key": "k", "value": value}
    changed = other_value(row, Random(0))
    assert re.fullmatch(make, changed["value"])
    assert changed["value"] != value
    assert changed["ordered_kv_records"] == [["k", changed["value"]], ["j", "Osaka"]]


def test_a_value_without_another_is_named() -> None:
    full = [[str(n), str(n)] for n in range(1, 10)]
    for records, value in (([["k", "東京"]], "東京"), ([["k", "—"]], "—"), (full, "4")):
        key = next(key for key, held in records if held == value)
        with pytest.raises(UserError, match=value):
            other_value({"ordered_kv_records": records, "key": key, "value": value}, Random(0))


def test_items_without_another_value_are_left_out(tmp_path: Path) -> None:
    def pairs(*values: str) -> list[PromptPair]:
        folder = tmp_path / str(len(values))
        (folder / "kv_retrieval").mkdir(parents=True)
        rows = [{"ordered_kv_records": [["k", v], ["j", "Osaka"]], "key": "k", "value": v} for v in values]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "kv_retrieval" / "test_2_keys.jsonl").write_text(text, encoding="utf-8")
        return counterfactual_pairs(tiny("llama"), "kv_retrieval[pairs=2]", limit=len(values), shots=0, data_dir=folder)

    assert len(pairs("東京", *(f"Tokyo{letter}" for letter in "abcdefghij"))) == 10
    with pytest.raises(UserError, match="東京"):
        pairs("東京")


@pytest.mark.parametrize("operands", [2, 4])
def test_another_operand_in_the_sum(operands: int) -> None:
    for row in generate_chains(40, operands, 19, True, 0):
        changed = other_operand(row, Random(2))
        before, after = str(row["question"]).split(), changed["question"].split()
        assert sum(a != b for a, b in zip(before, after, strict=True)) == 1
        assert [len(part) for part in before] == [len(part) for part in after]
        assert changed["answer"] != row["answer"]
        value = int(after[0])
        for sign, number in zip(after[1::2], after[2::2], strict=True):
            value += int(number) if sign == "+" else -int(number)
        assert str(value) == changed["answer"]


@pytest.mark.parametrize("task", ["kv_retrieval", "arithmetic", "arithmetic[operands=3,subtract=true]"])
def test_pairs_of_a_task(task: str) -> None:
    model = tiny("llama")
    pairs = counterfactual_pairs(model, task, limit=4, shots=0)
    assert len(pairs) == 4
    for pair in pairs:
        assert len(pair.clean) == len(pair.corrupt)
        assert pair.clean != pair.corrupt
        clean, corrupt = (model.tokenizer.decode(ids) for ids in (pair.clean, pair.corrupt))
        if task == "kv_retrieval":
            assert clean[:10] == corrupt[:10]
        else:
            # One operand is another number, and nothing else is.
            assert re.sub(r"\d+", "#", clean) == re.sub(r"\d+", "#", corrupt)
            numbers = zip(re.findall(r"\d+", clean), re.findall(r"\d+", corrupt), strict=True)
            assert sum(one != other for one, other in numbers) == 1
    assert pairs == counterfactual_pairs(model, task, limit=4, shots=0)


def test_sums_of_words_for_the_planted_model() -> None:
    model = model_of("arithmetic", "llama")
    pairs = counterfactual_pairs(model, "arithmetic", limit=6, shots=2)
    for pair in pairs:
        words = model.tokenizer.convert_ids_to_tokens(list(pair.clean))
        first, plus, second, equals = words[-4:]
        assert (plus, equals) == ("+", "=")
        assert int(first) + int(second) == int(model.tokenizer.convert_ids_to_tokens(pair.answer))


def test_answers_that_begin_alike_join_the_prompt() -> None:
    model = tiny("llama")
    pair = pair_from_texts(model, "2 + 9 =", "2 + 8 =", " 11", " 10")
    assert model.tokenizer.decode(list(pair.clean)) == "2 + 9 = 1"
    assert model.tokenizer.decode([pair.answer]) == "1"
    assert model.tokenizer.decode([pair.wrong]) == "0"
    with pytest.raises(UserError, match="have no differing token"):
        pair_from_texts(model, "2 + 9 =", "2 + 8 =", " 1", " 10")
    with pytest.raises(UserError, match="must correspond"):
        pair_from_texts(model, "2 + 9 =", "2 + 88 =", " 1", " 2")
    with pytest.raises(UserError, match=r"both prompts are '2 \+ 9 =': expected prompts that differ"):
        pair_from_texts(model, "2 + 9 =", "2 + 9 =", " 11", " 10")
    with pytest.raises(UserError, match="the wrong answer is empty: expected the prompt's continuation"):
        pair_from_texts(model, "2 + 9 =", "2 + 8 =", " 11", "")


def test_refusals() -> None:
    with pytest.raises(UserError, match="unknown task with counterfactuals"):
        counterfactual_pairs(tiny("llama"), "facts", limit=2)


def test_a_loaded_model_is_taken_as_it_is() -> None:
    """As `load_model` returns it, and not its adapter alone."""
    adapter = tiny("llama")
    texts = ("2 + 9 =", "2 + 8 =", " 11", " 10")
    assert pair_from_texts(adapter.module, *texts) == pair_from_texts(adapter, *texts)
