"""Two runs that share some of their items are paired on these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from lensprune.ablation.variants import CLEAN
from lensprune.analysis.runs_gap import runs_gap, shared_items
from lensprune.errors import UserError
from lensprune.results.run import Run
from lensprune.runs.cell_store import MemoryStore
from lensprune.runs.questions import questions_hash
from lensprune.runs.records import CellKey, cell_table
from lensprune.runs.spec import ConditionSpec, TaskSpec
from tests.helpers.made_cells import outcome, questions, requests, skip, spec
from tests.helpers.made_runs import layers_run


def some(items: Sequence[int], lost: Sequence[int], text: str = "What is it?") -> Run:
    """A run over one layer that asks `items`, and loses those of `lost` without the layer."""
    table = questions(max(items) + 1, text).take(list(items))
    variants = [CLEAN, skip(0)]
    made = replace(
        spec(variants, ["t"], ["default"], n_layers=3),
        conditions=(ConditionSpec("t", "default", "p" * 64, questions_hash(table)),),
        tasks=(TaskSpec("t", 0, 0, len(items), f"{hash((tuple(items), text)):064x}"),),
    )
    store = MemoryStore()
    store.keep_questions({("t", "default"): table})
    for variant in variants:
        key = CellKey(variant.name, "t", "default")
        outcomes = [outcome(i, variant.is_clean or i not in lost) for i in items]
        asked = [requests(max(items) + 1)[i] for i in items]
        store.write(key, cell_table(key, variant, outcomes, asked, [0.25] * len(items)))
    return Run(made, store)


def test_they_are_paired_on_what_both_asked_whatever_its_place() -> None:
    a, b = some(range(40), lost=range(10)), some([*range(59, 19, -1)], lost=range(20, 40))
    places = shared_items(a, b, "t", "default")
    assert places is not None
    assert [a.records("clean")["item_id"][i] for i in places[0]] == [f"item {i}" for i in range(20, 40)]
    assert [b.records("clean")["item_id"][i] for i in places[1]] == [f"item {i}" for i in range(20, 40)]
    [row] = a.compare(b).to_dict("records")
    assert row["n"] == 20
    assert (row["delta_a"], row["delta_b"], row["gap"]) == (0.0, -1.0, -1.0)
    assert row["ci_high"] < 0
    assert row["q_lower"] < 0.05
    assert row["note"] == "20 items shared, of 40 and 40"


def test_the_same_id_with_another_question_is_another_item() -> None:
    a, b = some(range(12), lost=[]), some(range(12), lost=range(12), text="What else?")
    places = shared_items(a, b, "t", "default")
    assert places is not None
    assert len(places[0]) == 0
    [row] = runs_gap(a, b).to_dict("records")
    assert (row["gap"], row["note"]) == (-1.0, "different items: not paired")
    assert np.isnan(row["ci_low"])


def test_very_same_items_are_all_paired() -> None:
    a, b = some(range(12), lost=range(6)), some(range(12), lost=range(6))
    assert shared_items(a, b, "t", "default") is None
    [row] = a.compare(b, task="t").to_dict("records")
    assert (row["n"], row["gap"], row["note"]) == (12, 0.0, "")


def test_a_name_that_is_not_of_the_run_and_nothing_to_compare() -> None:
    a = layers_run(tasks=("facts",), n=4)
    with pytest.raises(UserError, match="unknown task of this run 'fact': did you mean facts"):
        a.compare(a, task="fact")
    with pytest.raises(UserError, match="share no"):
        a.compare(layers_run(tasks=("arithmetic",), n=4))
