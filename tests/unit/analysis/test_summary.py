"""The summary of records whose statistics are worked out by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from lensprune.ablation.variants import CLEAN
from lensprune.analysis.depth import band_of, depth_bands
from lensprune.analysis.summary import SUMMARY_COLUMNS, summarise
from lensprune.errors import LensPruneError
from lensprune.protocols.base import Outcome
from lensprune.runs.cell_store import MemoryStore
from lensprune.runs.records import CellKey, cell_table
from tests.helpers.made_cells import outcome, outcomes_of, requests, skip, table


def _store(*cells: tuple[object, list[bool]], **options: object) -> MemoryStore:
    store = MemoryStore()
    for variant, correct in cells:
        store.write(CellKey(variant.name, "t", "default"), table(variant, correct, **options))  # type: ignore[attr-defined,arg-type]
    return store


def _summary(store: MemoryStore, names: list[str]) -> pd.DataFrame:
    return summarise(outcomes_of(store, names))


def test_a_row_by_hand() -> None:
    clean = [True] * 8 + [False] * 2
    lost = [False] * 6 + [True] * 2 + [False] * 2
    store = _store((CLEAN, clean), (skip(1), lost), (skip(2), clean), truncated=7)
    frame = _summary(store, ["clean", "L1.skip", "L2.skip"])
    assert tuple(frame.columns) == SUMMARY_COLUMNS
    assert list(frame["variant"]) == ["clean", "L1.skip", "L2.skip"]
    row = frame.set_index("variant").loc["L1.skip"]
    assert (row["accuracy"], row["accuracy_clean"]) == (0.2, 0.8)
    assert row["delta"] == pytest.approx(-0.6)
    assert row["delta_relative"] == pytest.approx(-0.75)
    assert row["p_value"] == pytest.approx(2 / 64)
    # One-sided p is 1/64. The unchanged variant can't have a small p and costs nothing but its place: Σ F / (1 − τ),
    # where τ is the largest p of six items with mean F / (1 − F) ≤ 0.05.
    assert row["q_loss"] == pytest.approx(1 / 64 / (1 - 1 / 64))
    assert row["q_gain"] == 1
    assert row["ci_low"] <= row["delta"] <= row["ci_high"] < 0
    assert (row["component"], row["layer"], row["ablation"]) == ("layer", 1, "skip")
    assert (row["n"], row["n_clusters"], row["chance"], row["truncated"]) == (10, 10, 0.25, 1)
    assert row["mean_gold_logprob"] == pytest.approx(-5.5)
    assert not row["at_chance"]  # P(≥ 8 of 10 | ¼) = 0.0004
    first = frame.iloc[0]
    assert (first["delta"], first["ci_low"], first["ci_high"]) == (0.0, 0.0, 0.0)
    assert np.isnan(first["p_value"])
    assert np.isnan(first["q_loss"])


def test_every_metric_is_named_with_its_mean() -> None:
    store = MemoryStore()
    for variant, contained in ((CLEAN, [1.0, 1.0, 0.0, 1.0]), (skip(0), [0.0, 1.0, 0.0, 0.0])):
        own = [
            outcome(i, False, metrics={"exact_match,first-value": 0.0, "contains_value": value})
            for i, value in enumerate(contained)
        ]
        key = CellKey(variant.name, "t", "default")
        store.write(key, cell_table(key, variant, own, requests(4), [0.25] * 4))
    found = _summary(store, ["clean", "L0.skip"]).set_index("variant")["metrics"]
    assert found["clean"] == "contains_value 0.750; exact_match,first-value 0.000"
    assert found["L0.skip"] == "contains_value 0.250; exact_match,first-value 0.000"


def test_clean_at_zero_has_no_relative_change() -> None:
    frame = _summary(_store((CLEAN, [False] * 4), (skip(0), [False] * 4)), ["clean", "L0.skip"])
    assert frame["delta_relative"].isna().all()
    assert frame["at_chance"].all()


def test_clusters_are_counted_and_widen_the_interval() -> None:
    clean = [True] * 40
    changed = ([False] * 10 + [True] * 10) * 2
    clusters = [name for name in "abcd" for _ in range(10)]
    alone = _summary(_store((CLEAN, clean), (skip(0), changed)), ["clean", "L0.skip"]).iloc[1]
    grouped = _summary(_store((CLEAN, clean), (skip(0), changed), clusters=clusters), ["clean", "L0.skip"]).iloc[1]
    assert (alone["n_clusters"], grouped["n_clusters"]) == (40, 4)
    assert alone["delta"] == grouped["delta"]
    assert grouped["ci_high"] - grouped["ci_low"] > alone["ci_high"] - alone["ci_low"]


def test_failures_become_rates() -> None:
    kinds: list[Outcome] = [
        outcome(0, True),
        outcome(1, False, failure="no_answer", prediction=None),
        outcome(2, False, failure="degenerate"),
        outcome(3, False, failure="non_finite", prediction=None, gold_logprob=float("nan")),
    ]
    store = MemoryStore()
    store.write(
        CellKey("clean", "t", "default"),
        cell_table(CellKey("clean", "t", "default"), CLEAN, kinds, requests(4), [0.25] * 4),
    )
    row = _summary(store, ["clean"]).iloc[0]
    assert (row["parse_rate"], row["degenerate_rate"], row["non_finite_rate"]) == (0.5, 0.25, 0.25)
    assert row["mean_gold_logprob"] == pytest.approx(-2.0)


def test_without_the_clean_cell_nothing_is_compared() -> None:
    frame = _summary(_store((skip(0), [True, False])), ["clean", "L0.skip"])
    assert list(frame["accuracy"]) == [0.5]
    assert frame[["delta", "ci_low", "p_value", "at_chance", "accuracy_clean"]].isna().all().all()


def test_an_unfinished_run_has_an_empty_summary() -> None:
    assert _summary(MemoryStore(), ["clean"]).empty


def test_other_items_can_not_be_paired() -> None:
    store = _store((CLEAN, [True, False]), (skip(0), [True, False, True]))
    with pytest.raises(LensPruneError, match="different items"):
        _summary(store, ["clean", "L0.skip"])


def test_bands_of_thirty_layers() -> None:
    names = [band_of(layer, 30) for layer in range(30)]
    assert names == ["first"] * 9 + ["middle"] * 12 + ["last"] * 9


def test_depth_bands_average_their_layers() -> None:
    clean = [True] * 10
    store = _store((CLEAN, clean), *((skip(layer), [False] * layer + [True] * (10 - layer)) for layer in range(10)))
    names = ["clean", *(f"L{layer}.skip" for layer in range(10))]
    frame = depth_bands(outcomes_of(store, names, n_layers=10))
    assert list(frame["band"]) == ["first", "middle", "last"]
    assert list(frame["n_layers"]) == [3, 4, 3]
    assert frame["mean_delta"].to_list() == pytest.approx([-0.1, -0.45, -0.8])
    assert frame["worst_delta"].to_list() == pytest.approx([-0.2, -0.6, -0.9])
    assert ((frame["ci_low"] <= frame["mean_delta"]) & (frame["mean_delta"] <= frame["ci_high"])).all()


def test_losses_of_one_cluster_count_once() -> None:
    """Four items of one of three clusters are lost: one random sign, where McNemar sees four."""
    clusters = ["a"] * 4 + ["b"] * 4 + ["c"] * 4
    store = MemoryStore()
    for variant, correct in ((CLEAN, [True] * 12), (skip(0), [False] * 4 + [True] * 8)):
        store.write(CellKey(variant.name, "t", "default"), table(variant, correct, clusters=clusters))
    row = summarise(outcomes_of(store, ["clean", "L0.skip"])).set_index("variant").loc["L0.skip"]
    assert row["p_value"] == pytest.approx(2 / 2**4)
    # p 1/2 of one test: p / (1 − p).
    assert (row["q_loss"], row["q_gain"]) == (1, 1)
