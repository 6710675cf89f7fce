"""The figure draws what the table says, and nothing that means nothing."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from lensprune.ablation.variants import CLEAN
from lensprune.analysis.summary import summarise
from lensprune.errors import UserError
from lensprune.results.figures.depth import delta_by_depth
from lensprune.results.outputs import write_outputs
from lensprune.runs.cell_store import MemoryStore
from lensprune.runs.outcomes import Outcomes
from lensprune.runs.records import CellKey
from tests.helpers.made_cells import outcomes_of, skip, table

mpl.use("agg")


@pytest.fixture
def outcomes() -> Outcomes:
    store = MemoryStore()
    right = {"default": 9, "generate": 3}
    for task in ("one", "two"):
        for protocol, n in right.items():
            for variant, lost in ((CLEAN, 0), (skip(0), 3), (skip(2), 1)):
                correct = [i < n - lost for i in range(10)]
                key = CellKey(variant.name, task, protocol)
                store.write(key, table(variant, correct, task=task, protocol=protocol))
    cells = [(task, protocol) for task in ("one", "two") for protocol in right]
    return outcomes_of(store, ["clean", "L0.skip", "L2.skip"], cells, n_layers=3)


@pytest.fixture
def summary(outcomes: Outcomes) -> pd.DataFrame:
    return summarise(outcomes)


def test_points_are_the_tables_deltas(summary: pd.DataFrame) -> None:
    axes = delta_by_depth(summary, n_layers=3)
    assert [ax.get_title(loc="left").splitlines()[0] for ax in axes] == [
        "one, default", "one, generate", "two, default", "two, generate",
    ]  # fmt: skip
    for ax in axes:
        points = {
            float(x): round(float(y), 6)
            for line in ax.lines
            if line.get_gid() in ("significant", "others")
            for x, y in np.asarray(line.get_xydata())
        }
        assert points == {0.0: -0.3, 2.0: -0.1}
    plt.close("all")


def test_a_protocol_at_chance_is_grey_and_says_so(summary: pd.DataFrame) -> None:
    measured, chance = delta_by_depth(summary[summary["task"] == "one"], n_layers=3)
    assert "at chance (0.25)" in chance.get_title(loc="left")
    assert "at chance" not in measured.get_title(loc="left")
    others = {ax: next(line for line in ax.lines if line.get_gid() == "others") for ax in (measured, chance)}
    assert others[chance].get_color() == "0.55"
    assert others[measured].get_color() != "0.55"
    # Intervals: none for the protocol at chance.
    assert (len(measured.collections), len(chance.collections)) == (1, 0)
    plt.close("all")


def test_nothing_to_draw_is_said(summary: pd.DataFrame) -> None:
    clean = summary[summary["variant"] == "clean"]
    with pytest.raises(UserError, match="nothing to draw"):
        delta_by_depth(clean)


def test_outputs_are_written_whole(outcomes: Outcomes, tmp_path: Path) -> None:
    written = write_outputs(outcomes, tmp_path)
    assert [p.relative_to(tmp_path).as_posix() for p in written] == ["summary.csv", "figures/depth.png"]
    assert written[1].read_bytes().startswith(b"\x89PNG")
    assert len(pd.read_csv(written[0])) == len(summarise(outcomes)) == 12
    assert not [p for p in tmp_path.rglob(".tmp-*")]
    assert not plt.get_fignums()
