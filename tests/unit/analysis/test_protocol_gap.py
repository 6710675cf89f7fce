"""Differences between protocols, and the signatures made of them, on outcomes worked out by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib

matplotlib.use("Agg")
import numpy as np
import pandas as pd
import pytest

from lensprune.ablation.components import Layer
from lensprune.ablation.variants import CLEAN, Ablation, Variant
from lensprune.analysis.intervals import tango
from lensprune.analysis.protocol_gap import GAP_COLUMNS, clear_gaps, protocol_gap, task_gap
from lensprune.analysis.signatures import SIGNATURE_COLUMNS, signatures, verdict
from lensprune.errors import UserError
from lensprune.results.figures.protocols import protocol_pairs
from lensprune.runs.cell_store import MemoryStore
from lensprune.runs.records import CellKey
from tests.helpers.made_cells import outcomes_of, skip, table

Answers = Mapping[tuple[str, str], Mapping[Variant, Sequence[bool]]]


def stored(answers: Answers) -> MemoryStore:
    store = MemoryStore()
    for (task, protocol), cells in answers.items():
        for variant, correct in cells.items():
            store.write(CellKey(variant.name, task, protocol), table(variant, correct, task=task, protocol=protocol))
    return store


def right(n: int, of: int) -> list[bool]:
    return [True] * n + [False] * (of - n)


def test_a_gap_by_hand() -> None:
    store = stored(
        {
            ("t", "default"): {CLEAN: right(10, 10), skip(0): right(8, 10)},
            ("t", "generate"): {CLEAN: right(9, 10), skip(0): right(2, 10)},
        }
    )
    frame = protocol_gap(outcomes_of(store, ["clean", "L0.skip"], [("t", "default"), ("t", "generate")]))
    assert tuple(frame.columns) == GAP_COLUMNS
    [row] = frame.to_dict("records")
    assert (row["protocol_a"], row["protocol_b"], row["variant"], row["layer"]) == ("default", "generate", "L0.skip", 0)
    assert (row["delta_a"], row["delta_b"]) == (pytest.approx(-0.2), pytest.approx(-0.7))
    assert row["gap"] == pytest.approx(-0.5)
    # Differences −1 six times and +1 once: a score interval.
    [low], [high] = tango(np.array([6]), np.array([1]), 10)
    assert (row["ci_low"], row["ci_high"]) == pytest.approx((low, high))
    # Items 2–7 changed by −1 more; item 8 lost in both; item 9 lost only under default, by +1: 7 items differ, sum −5.
    assert row["p_value"] == pytest.approx(2 * (1 + 7) / 2**7)
    # One test alone: p / (1 − p) of the half in which the gap is below 0.
    assert (row["q_lower"], row["q_higher"]) == pytest.approx((1 / 15, 1))
    assert not row["at_chance"]


def test_open_and_closed_book_are_paired_by_item() -> None:
    store = stored(
        {
            ("closed", "default"): {CLEAN: right(8, 10), skip(0): right(2, 10)},
            ("open", "default"): {CLEAN: right(8, 10), skip(0): right(7, 10)},
            ("other", "default"): {CLEAN: right(8, 9), skip(0): right(7, 9)},
        }
    )
    cells = [(task, "default") for task in ("closed", "open", "other")]
    outcomes = outcomes_of(store, ["clean", "L0.skip"], cells)
    [row] = task_gap(outcomes, "closed", "open").to_dict("records")
    assert row["gap"] == pytest.approx(0.5)
    with pytest.raises(UserError, match="different items"):
        task_gap(outcomes, "closed", "other")


def layers(first: int, middle: int, last: int, clean: int, of: int) -> dict[Variant, list[bool]]:
    """Ten layers: right answers with a layer of each band removed."""
    cells = {CLEAN: right(clean, of)}
    for layer in range(10):
        cells[skip(layer)] = right(first if layer < 3 else middle if layer < 7 else last, of)
    return cells


def test_unchanged_gaps_have_the_interval_of_two_outcomes() -> None:
    cells = {CLEAN: right(8, 10), skip(0): right(8, 10)}
    store = stored({("t", "default"): cells, ("t", "generate"): cells})
    [row] = protocol_gap(outcomes_of(store, ["clean", "L0.skip"], [("t", "default"), ("t", "generate")])).to_dict(
        "records"
    )
    bound = 2 * (1 - 0.025 ** (1 / 10))
    assert (row["gap"], row["ci_low"], row["ci_high"]) == pytest.approx((0, -bound, bound))


def test_each_ablation_has_signatures_of_its_own() -> None:
    """By skipping the first layers alone are needed, by their mean none is; zeroed was one layer, which is no depth."""
    cells = layers(20, 100, 100, 100, 100)
    for layer in range(10):
        own = Variant(f"L{layer}.mean", (Ablation(Layer(layer), "mean"),))
        cells[own] = right(100, 100)
    zeroed = Variant("L3.zero", (Ablation(Layer(3), "zero"),))
    cells[zeroed] = right(0, 100)
    frame = signatures(outcomes_of(stored({("t", "default"): cells}), [own.name for own in cells], n_layers=10))
    assert tuple(frame.columns) == SIGNATURE_COLUMNS
    found = frame.set_index("ablation")
    assert found["value"].to_dict() == pytest.approx({"skip": -0.8, "mean": 0})
    assert found["verdict"].to_dict() == {"skip": "seen", "mean": "not seen"}
    # First minus later changes by at most 1, so no change in 100 items is ±0.036.
    assert found.loc["mean", "ci_high"] == pytest.approx(1 - 0.025 ** (1 / 100))


def test_a_handful_of_layers_does_not_stand_for_the_depth() -> None:
    """Of 30 layers every third one is enough, and two chosen ones of the first nine are not."""

    def found(chosen: list[int]) -> pd.DataFrame:
        cells = {CLEAN: right(10, 10), **{skip(layer): right(1 if layer < 9 else 10, 10) for layer in chosen}}
        return signatures(outcomes_of(stored({("t", "default"): cells}), [own.name for own in cells], n_layers=30))

    every_third = found(list(range(0, 30, 3)))
    assert every_third["layers"].to_list() == ["3 of 9, 7 of 21"]
    assert every_third["value"].to_list() == pytest.approx([-0.9])
    with pytest.raises(UserError, match="every third layer or more"):
        found([0, 1, 9, 12, 15, 18, 21, 24, 27])


def run_signatures(answers: Answers) -> dict[tuple[str, str], str]:
    names = ["clean", *(f"L{layer}.skip" for layer in range(10))]
    frame = signatures(outcomes_of(stored(answers), names, list(answers), n_layers=10))
    return {(row.signature, row.protocol): row.verdict for row in frame.itertuples()}


def test_signatures_of_the_claimed_pattern() -> None:
    found = run_signatures(
        {
            ("t", "continuation"): layers(20, 100, 99, 100, 100),
            ("t", "generate"): layers(30, 40, 35, 90, 100),
        }
    )
    assert found == {
        ("early drop", "continuation"): "seen",
        ("early drop", "generate"): "seen",
        ("deep loss of generation", "generate"): "seen",
        ("likelihood flat, generation drops", "generate − continuation"): "seen",
    }


def test_signatures_of_the_opposite_pattern() -> None:
    found = run_signatures(
        {
            ("t", "continuation"): layers(100, 40, 40, 100, 100),
            ("t", "generate"): layers(90, 90, 90, 90, 100),
        }
    )
    assert set(found.values()) == {"not seen"}


def test_a_likelihood_that_drops_too_is_not_flat() -> None:
    found = run_signatures(
        {
            ("t", "default"): layers(90, 60, 60, 100, 100),
            ("t", "generate"): layers(20, 10, 10, 90, 100),
        }
    )
    assert found["likelihood flat, generation drops", "generate − default"] == "not seen"


def test_too_few_items_and_chance_are_said() -> None:
    few = run_signatures({("t", "generate"): layers(7, 7, 7, 8, 8)})
    assert few["early drop", "generate"] != "seen"
    assert few["deep loss of generation", "generate"] == "not resolvable"
    chance = run_signatures({("t", "generate"): layers(5, 5, 5, 25, 100)})
    assert set(chance.values()) == {"at chance"}


def test_verdicts() -> None:
    assert verdict(float("nan"), float("nan")) == "not resolvable"
    assert [verdict(-0.3, -0.01), verdict(-0.04, 0.2), verdict(-0.3, 0.1), verdict(-0.04, -0.01)] == [
        "seen",
        "not seen",
        "not resolvable",
        "seen",
    ]


def test_signatures_need_the_whole_depth() -> None:
    store = stored({("t", "default"): {CLEAN: right(9, 10), skip(0): right(1, 10)}})
    with pytest.raises(UserError, match="sweep over layers"):
        signatures(outcomes_of(store, ["clean", "L0.skip"], n_layers=10))
    with pytest.raises(UserError, match="margin 0"):
        signatures(outcomes_of(store, ["clean"]), accuracy_margin=0)


def test_a_likelihood_near_chance_is_not_called_flat() -> None:
    """Both lose half of what they know. Of 0.34 − 0.25 half is less than the margin, and says nothing of flatness."""
    near, far = layers(136, 136, 136, 136, 400), layers(200, 200, 200, 400, 400)
    near |= {skip(layer): right(118, 400) for layer in range(10)}
    answers = {("t", "continuation"): near, ("t", "generate"): far}
    found = run_signatures(answers)
    assert found["likelihood flat, generation drops", "generate − continuation"] == "not resolvable"
    # With as small a loss of a clean model that knows much it is flat.
    known = {CLEAN: right(300, 400)} | {skip(layer): right(296, 400) for layer in range(10)}
    found = run_signatures({("t", "continuation"): known, ("t", "generate"): far})
    assert found["likelihood flat, generation drops", "generate − continuation"] == "seen"


def test_a_gap_from_the_floor_is_marked_and_not_clear() -> None:
    clean, lost = right(136, 400), right(118, 400)
    store = stored(
        {
            ("t", "continuation"): {CLEAN: clean, skip(0): lost},
            ("t", "generate"): {CLEAN: right(400, 400), skip(0): right(200, 400)},
        }
    )
    gap = protocol_gap(outcomes_of(store, ["clean", "L0.skip"], [("t", "continuation"), ("t", "generate")]))
    [row] = gap.to_dict("records")
    assert row["q_lower"] < 1e-6
    assert row["floor"]
    assert not row["at_chance"]
    assert not clear_gaps(gap).any()
    # Half of what is above chance under continuation, two thirds under generate.
    assert (row["relative_a"], row["relative_b"]) == pytest.approx((-0.045 / 0.09, -0.5 / 0.75))
    assert clear_gaps(gap.assign(floor=False)).all()
    [ax] = protocol_pairs(gap)
    assert "near chance: no rings" in ax.get_title()
    [ax] = protocol_pairs(gap.assign(floor=False))
    assert "near chance" not in ax.get_title()
    # Where no gap would be clear, nothing is hidden.
    [ax] = protocol_pairs(gap.assign(q_lower=0.5, q_higher=0.5))
    assert "near chance" not in ax.get_title()


def test_protocols_that_asked_other_items_are_paired_by_the_shared_ones() -> None:
    """One item could not be asked under generate; all others lose alike, so the gap is 0."""
    cells = {CLEAN: [True] * 40, **{skip(layer): [i % 2 == 0 for i in range(40)] for layer in range(10)}}
    store = MemoryStore()
    for protocol, first in (("continuation", 0), ("generate", 1)):
        for variant, correct in cells.items():
            rows = table(variant, correct, task="t", protocol=protocol).slice(first)
            store.write(CellKey(variant.name, "t", protocol), rows)
    asked = [("t", "continuation"), ("t", "generate")]
    frame = signatures(outcomes_of(store, [own.name for own in cells], asked, n_layers=10))
    [row] = frame[frame["signature"] == "likelihood flat, generation drops"].to_dict("records")
    assert (row["n"], row["value"]) == (39, 0)
