"""What a sweep over heads leaves in its folder and its report."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest

from lensprune.ablation import Ablation, Head, Layer, Variant
from lensprune.results.concentration import NOT_OF_ALL_HEADS, concentration_files
from lensprune.results.run import Run
from lensprune.results.text import run_report
from tests.helpers.made_runs import heads_run, layers_run


def zero(*heads: tuple[int, int], kind: str = "zero") -> Variant:
    ablations = tuple(Ablation(Head(*place), kind) for place in heads)  # type: ignore[arg-type]
    return Variant("+".join(a.name for a in ablations), ablations)


@pytest.mark.slow
def test_a_head_sweep_leaves_concentration_and_overlap(tmp_path: Path) -> None:
    run = heads_run(folder=tmp_path / "run")
    run.save()
    table = pd.read_csv(tmp_path / "run" / "concentration.csv")
    cells = [tuple(pair) for pair in table[["task", "protocol"]].drop_duplicates().to_numpy().tolist()]
    assert cells == run.conditions
    # One head of eight holds all of the effect.
    value = table[table["task"] == "facts"].groupby("statistic")["value"].first()
    assert value["share_top_1"] == 1
    assert value["participation_ratio"] == pytest.approx(1)
    assert value["gini"] == pytest.approx(7 / 8)
    shared = pd.read_csv(tmp_path / "run" / "overlap.csv")
    assert len(shared) == len(run.conditions) * (len(run.conditions) - 1) // 2
    # The other seven tie, so each side has one strongest head: the same.
    assert shared["k"].tolist() == [4] * len(shared)
    assert shared["shared"].tolist() == [1] * len(shared)
    pd.testing.assert_frame_equal(table, run.concentration(), check_dtype=False)
    assert str(tmp_path / "run" / "overlap.csv") in run_report(run)


@pytest.mark.slow
def test_the_report_offers_them(tmp_path: Path) -> None:
    page = heads_run(folder=tmp_path / "run").report().read_text(encoding="utf-8")
    (data,) = re.findall(r'href="data:text/csv;base64,([^"]*)" download="concentration.csv"', page)
    table = pd.read_csv(StringIO(base64.b64decode(data).decode("utf-8-sig")))
    assert set(table["statistic"]) >= {"gini", "share_top_1"}
    assert page.count('download="overlap.csv"') == 1
    assert NOT_OF_ALL_HEADS not in page


def test_each_way_of_removal_has_its_own(tmp_path: Path) -> None:
    variants = [zero((0, head), kind=kind) for kind in ("zero", "mean") for head in range(3)]
    run = layers_run(variants=variants, folder=tmp_path / "run")
    assert sorted(concentration_files(run)) == [
        "concentration_mean.csv",
        "concentration_zero.csv",
        "overlap_mean.csv",
        "overlap_zero.csv",
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "variants",
    [
        [zero((0, 0)), zero((0, 1)), zero((0, 0), (0, 1))],
        [zero((0, 0))],
        [zero((0, 0)), zero((0, 1)), Variant("L1.skip", (Ablation(Layer(1), "skip"),))],
    ],
    ids=["pairs", "one head", "a layer too"],
)
def test_what_is_no_sweep_over_heads_gets_none(variants: list[Variant], tmp_path: Path) -> None:
    run = layers_run(variants=variants, folder=tmp_path / "run")
    run.save()
    assert (tmp_path / "run" / "summary.csv").is_file()
    assert not list((tmp_path / "run").glob("conc*"))


def test_an_unfinished_sweep_gets_none(tmp_path: Path) -> None:
    heads_run(folder=tmp_path / "run")
    next((tmp_path / "run" / "records").rglob("*L1_H3*.parquet")).unlink()
    assert concentration_files(Run.load(tmp_path / "run")) == {}


def test_a_screened_sweep_says_why_it_has_none(tmp_path: Path) -> None:
    run = heads_run()
    screen = {"component": "head", "ablation": "zero", "fraction": 0.1, "top": 1}
    screened = Run(replace(run.spec, screen=screen), run._store)
    assert concentration_files(run)
    assert concentration_files(screened) == {}
