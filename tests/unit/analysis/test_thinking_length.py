"""How the length of thinking changes: known lengths, paired intervals, what is cut off."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import scipy

from lensprune.ablation.variants import CLEAN, Variant
from lensprune.analysis.thinking_length import LENGTH_COLUMNS, thinking_length
from lensprune.errors import UserError
from lensprune.results.analyses import analysis_named
from lensprune.results.run import Run
from lensprune.runs.records import CellKey, cell_table
from tests.helpers.made_cells import outcome, requests, skip, spec

CLEAN_LENGTHS = [10, 12, 8, 30]
SHORTER = [6, 12, 7, 10]


def cell(
    variant: Variant, lengths: Sequence[int | None], cut_off: int = 0, clusters: Sequence[str | None] | None = None
) -> tuple[CellKey, object]:
    names = clusters or [None] * len(lengths)
    outcomes = [
        outcome(
            i,
            i >= cut_off,
            names[i],
            failure="cut_off" if i < cut_off else None,
            thinking=None if length is None else "x" * length,
            n_thinking_tokens=length,
            text="" if i < cut_off else " A",
        )
        for i, length in enumerate(lengths)
    ]
    key = CellKey(variant.name, "t", "generate")
    return key, cell_table(key, variant, outcomes, requests(len(lengths)), [0.0] * len(lengths))


class Cells(dict):  # type: ignore[type-arg]
    """Stored cells, as `Outcomes` reads them."""

    def finished(self) -> set[CellKey]:
        return set(self)

    def read(self, key: CellKey, columns: Sequence[str] | None = None) -> object:
        return self[key] if columns is None else self[key].select(columns)


def run(*cells: tuple[CellKey, object]) -> Run:
    return Run(
        spec((CLEAN, skip(0), skip(1)), protocols=("generate",), think_tokens=("<think>", "</think>")), Cells(cells)
    )  # type: ignore[arg-type]


def test_the_change_is_paired_item_by_item() -> None:
    table = thinking_length(run(cell(CLEAN, CLEAN_LENGTHS), cell(skip(0), SHORTER), cell(skip(1), CLEAN_LENGTHS, 1)))
    assert list(table.columns) == list(LENGTH_COLUMNS)
    assert list(table["variant"]) == ["clean", "L0.skip", "L1.skip"]
    clean, shorter, same = table.to_dict("records")
    changes = np.array(SHORTER) - np.array(CLEAN_LENGTHS)
    half = scipy.stats.t.ppf(0.975, 3) * changes.std(ddof=1) / 2
    assert shorter["delta"] == pytest.approx(changes.mean()) == pytest.approx(-6.25)
    assert (shorter["ci_low"], shorter["ci_high"]) == pytest.approx((-6.25 - half, -6.25 + half))
    assert (shorter["tokens"], shorter["tokens_clean"]) == (8.75, 15.0)
    # Three items differ, all downwards: 2 of 8 patterns of signs are as extreme.
    assert shorter["p_value"] == pytest.approx(0.25)
    assert (clean["delta"], clean["ci_low"], clean["ci_high"], clean["tokens"]) == (0, 0, 0, 15)
    assert np.isnan(clean["p_value"])
    assert (same["delta"], same["p_value"], same["ended"], same["ended_clean"]) == (0, 1, 0.75, 1)


def test_clusters_are_the_units() -> None:
    clusters = ["a", "a", "b", "b"]
    table = thinking_length(run(cell(CLEAN, CLEAN_LENGTHS, 0, clusters), cell(skip(0), SHORTER, 0, clusters)))
    alone = thinking_length(run(cell(CLEAN, CLEAN_LENGTHS), cell(skip(0), SHORTER)))
    assert table.loc[1, "n_clusters"] == 2
    assert table.loc[1, "ci_high"] - table.loc[1, "ci_low"] > alone.loc[1, "ci_high"] - alone.loc[1, "ci_low"]


@pytest.mark.parametrize("lengths", [[None] * 4, [0] * 4])
def test_a_run_without_thinking_says_so(lengths: list[int | None]) -> None:
    with pytest.raises(UserError, match="contains no thinking: generate in the chat format"):
        thinking_length(run(cell(CLEAN, lengths), cell(skip(0), lengths)))


def test_it_is_an_analysis_with_a_figure() -> None:
    made = run(cell(CLEAN, CLEAN_LENGTHS), cell(skip(0), SHORTER), cell(skip(1), CLEAN_LENGTHS, 2))
    analysis = analysis_named("thinking_length")
    assert analysis.saved
    ax: Any = made.plot("thinking_length")
    bars, filled, hollow = ax.collections[0], ax.lines[2], ax.lines[3]
    assert list(filled.get_xydata()[0]) == [0, -6.25]
    assert list(hollow.get_xydata()[0]) == [1, 0]
    assert ax.get_xlabel() == "changed layer (skip)"
    # L1 has no interval, and L0's is drawn all the same.
    shorter = made.plot_data("thinking_length").set_index("variant").loc["L0.skip"]
    assert made.plot_data("thinking_length")["ci_low"].isna().sum() == 1
    assert bars.get_segments()[0][:, 1] == pytest.approx(shorter[["ci_low", "ci_high"]].to_numpy(float))
    assert "clean 15 tokens, n 4" in ax.get_legend().get_texts()[0].get_text()
