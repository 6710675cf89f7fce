"""Key-value retrieval: rows cut down, the gold pair moved, the two endings."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest

from lensprune.errors import UserError
from lensprune.tasks import GenerationFormat, MultipleChoiceFormat, build_context, get_task, load_task
from lensprune.tasks.bundled.kv_rows import balanced_position
from lensprune.tasks.kv_retrieval import with_pairs
from lensprune.tasks.prompts import prompt_strings
from tests.helpers.rows import RowsWriter


def _row(number: int, pairs: int, gold: int = 0) -> dict[str, Any]:
    random = Random(number)
    records = [[str(uuid.UUID(int=random.getrandbits(128))) for _ in range(2)] for _ in range(pairs)]
    return {"ordered_kv_records": records, "key": records[gold][0], "value": records[gold][1]}


@pytest.fixture
def folder(tmp_path: Path, write_rows: RowsWriter) -> Path:
    """Made-up rows with 8 and with 12 pairs."""
    for pairs in (8, 12):
        rows = [_row(100 * pairs + number, pairs, number % pairs) for number in range(16)]
        write_rows("kv_retrieval", f"test_{pairs}_keys", rows)
    return tmp_path


@pytest.mark.parametrize("pairs", [2, 3, 4, 7, 20])
def test_balanced_positions_cover_the_list_at_every_limit(pairs: int) -> None:
    for limit in (pairs, 10 * pairs, 16 * pairs):
        places = Counter(balanced_position(index, pairs) for index in range(limit))
        assert set(places) <= set(range(pairs))
        expected = limit / pairs
        # The discrepancy of the van der Corput sequence grows with the logarithm of the number of items.
        slack = limit.bit_length()
        assert all(abs(places[place] - expected) <= slack for place in range(pairs)), (limit, places)
    eighth = Counter(balanced_position(index, 4) for index in range(8))
    assert eighth == {0: 2, 1: 2, 2: 2, 3: 2}


@pytest.mark.parametrize("own_place", [0, 3, 9])
@pytest.mark.parametrize(
    ("gold", "place"), [("first", 0), ("middle", 2), ("last", 3), (0, 0), (1, 1), (3, 3), ("balanced", 1)]
)
def test_gold_is_moved_and_the_others_keep_their_order(gold: Any, place: int, own_place: int) -> None:
    row = _row(1, 10, own_place)
    moved = with_pairs(row, 4, gold, index=2)
    records = moved["ordered_kv_records"]
    assert records[place] == [row["key"], row["value"]]
    assert moved["gold_position"] == place
    others = [record for record in row["ordered_kv_records"] if record[0] != row["key"]]
    assert [record for record in records if record[0] != row["key"]] == others[:3]
    assert (moved["key"], moved["value"]) == (row["key"], row["value"])


def test_as_is_leaves_a_whole_row_alone() -> None:
    row = _row(1, 10, 7)
    assert with_pairs(row, 10, "as_is", 0)["ordered_kv_records"] == row["ordered_kv_records"]
    assert with_pairs(row, 4, "as_is", 0)["gold_position"] == 3


def test_rows_that_do_not_fit() -> None:
    with pytest.raises(UserError, match="row 3 has 10 pairs, but 11 were requested"):
        with_pairs(_row(1, 10), 11, "first", 2)
    with pytest.raises(UserError, match="row 1 has no pair 'absent'"):
        with_pairs({**_row(1, 10), "key": "absent"}, 4, "first", 0)


def test_the_smallest_file_with_enough_pairs_is_read(folder: Path) -> None:
    for pairs, file in ((4, "test_8_keys"), (8, "test_8_keys"), (9, "test_12_keys")):
        loaded = load_task(f"kv_retrieval[pairs={pairs}]", data_dir=folder)
        assert Path(loaded.data_source).stem == file
        assert {len(item.doc["ordered_kv_records"]) for item in loaded.items} == {pairs}
        assert loaded.parameters["keys"] == "uuid"
    with pytest.raises(UserError, match=r"N ≥ 13 pairs; N there: 8, 12"):
        load_task("kv_retrieval[pairs=13]", data_dir=folder)


def test_positions_of_a_loaded_task(folder: Path) -> None:
    assert Counter(item.doc["gold_position"] for item in load_task("kv_retrieval", data_dir=folder).items) == {
        place: 4 for place in range(4)
    }
    fixed = load_task("kv_retrieval[gold=2]", data_dir=folder).items
    assert {item.doc["gold_position"] for item in fixed} == {2}


@pytest.mark.parametrize("ending", ["plain", "reopened"])
@pytest.mark.parametrize("shots", [0, 2])
def test_prompts_hold_the_json_and_their_ending(ending: str, shots: int, folder: Path) -> None:
    loaded = load_task(f"kv_retrieval[ending={ending}]", data_dir=folder, shots=shots)
    for item in loaded.items:
        key, value = item.doc["key"], item.doc["value"]
        fmt = loaded.task.formats["generate"]
        assert isinstance(fmt, GenerationFormat)
        prompt = build_context(fmt, item)
        assert prompt.count("JSON data:\n") == shots + 1
        data = json.loads(prompt[prompt.rindex("JSON data:\n") + 11 : prompt.rindex("}") + 1])
        assert list(data.items()) == [tuple(record) for record in item.doc["ordered_kv_records"]]
        assert data[key] == value
        assert prompt.endswith(f'"{key}"\nCorresponding value:' if ending == "plain" else f'"{key}": "')
        for example in item.fewshot:
            assert example["key"] != key
            answered = f'"{example["key"]}"\nCorresponding value: {example["value"]}\n\n'
            reopened = f'"{example["key"]}": "{example["value"]}"\n\n'
            assert (answered if ending == "plain" else reopened) in prompt
        for text in (value, f" {value}", f"{value}\nmore"):
            found = fmt.filters[0](text)
            assert found is not None
            assert fmt.matches(found, fmt.target(item.doc))


def test_options_are_values_of_the_same_json(folder: Path) -> None:
    loaded = load_task("kv_retrieval[pairs=6]", data_dir=folder)
    places = Counter()
    for item in loaded.items:
        values = [value for _, value in item.doc["ordered_kv_records"]]
        letter, text = loaded.task.formats["default"], loaded.task.formats["continuation"]
        assert isinstance(letter, MultipleChoiceFormat)
        assert isinstance(text, MultipleChoiceFormat)
        options = list(text.choices(item.doc))
        assert len(set(options)) == 4
        assert set(options) <= set(values)
        assert options[text.gold(item.doc)] == item.doc["value"]
        assert letter.gold(item.doc) == text.gold(item.doc)
        assert [one[1] for one in prompt_strings(text, item)] == [f" {option}" for option in options]
        places[text.gold(item.doc)] += 1
    assert len(places) > 1, "the answer's letter does not give it away"


@pytest.mark.parametrize(
    ("pairs", "likelihood", "generate"), [(2, 1 / 2, 1 / 2), (3, 1 / 3, 1 / 3), (4, 1 / 4, 1 / 4), (8, 1 / 4, 1 / 8)]
)
def test_chance(pairs: int, likelihood: float, generate: float, folder: Path) -> None:
    task = get_task(f"kv_retrieval[pairs={pairs}]")
    doc = load_task(task, data_dir=folder, limit=1).items[0].doc
    assert task.chance(doc, "default") == task.chance(doc, "continuation") == pytest.approx(likelihood)
    assert task.chance(doc, "generate") == pytest.approx(generate)
