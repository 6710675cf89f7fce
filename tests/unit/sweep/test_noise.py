"""Items that the clean model answers differently in half precision, against sweeps in both number types."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes

import lensprune as lp
from lensprune.cli import main
from lensprune.errors import UserError
from lensprune.models import as_hooked_model
from lensprune.results.figures.depth import delta_by_depth
from lensprune.results.text import top_variants
from lensprune.runs.folder import read_spec
from lensprune.runs.noise import noise_floor, noise_table, within_noise
from lensprune.runs.spec import SweepSpec
from lensprune.sweeps.selection import VariantSelection
from tests.helpers.made_runs import layers_run
from tests.helpers.printed import check_json_of
from tests.helpers.sweeps import sweep
from tests.helpers.tiny_models import folder, tiny

TASK, PROTOCOL = "facts", "continuation"
ASKED: dict[str, Any] = {"limit": 12, "shots": 0}
WAYS = ["batches of 256 tokens", "batches of 2048 tokens", "hooked", "float32"]
FIRST_LAYER = VariantSelection("layers", "skip", "0")


@pytest.fixture(scope="module")
def model() -> Path:
    return folder("llama")


def right(model: Path) -> pd.Series:
    """Which items the clean model in float32 has right."""
    run = sweep(model, tasks=TASK, protocols=PROTOCOL, variants=FIRST_LAYER, **ASKED)
    return run.records("clean").set_index("item_id")["correct"]


@pytest.fixture(scope="module")
def other() -> pd.Series:
    return right(folder("llama", 1))


@pytest.fixture
def stranger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another model takes the place of the model in float32, so that many items flip."""
    strange = as_hooked_model(lp.load_model(folder("llama", 1)))
    monkeypatch.setattr("lensprune.sweeps.noise._in_float32", lambda *given: strange)


@pytest.mark.slow
@pytest.mark.usefixtures("stranger")
def test_items_that_flip(model: Path, other: pd.Series, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The noise of a sweep in bfloat16: where its own clean answers and the stranger's differ."""
    asked: dict[str, Any] = {"tasks": TASK, "protocols": PROTOCOL, "variants": FIRST_LAYER, **ASKED}
    run = sweep(model, tmp_path / "run", dtype="bfloat16", progress=True, **asked)
    assert "of 12 items the clean model in bfloat16 answers differently" in capsys.readouterr().err
    half = run.records("clean").set_index("item_id")["correct"]
    changed = half != other
    assert changed.any()
    table = noise_table(run.spec)
    assert table["way"].tolist() == WAYS
    [row] = table[table["way"] == "float32"].to_dict("records")
    assert set(row["items"].split()) == set(changed.index[changed])
    assert (row["lost"], row["won"]) == ((half & ~other).sum(), (~half & other).sum())
    assert row["flipped"] == pytest.approx(changed.mean())
    assert noise_floor(run.spec, TASK, PROTOCOL) == table["flipped"].max()
    assert run.summary()["noise"].tolist() == [table["flipped"].max()] * 2
    assert noise_table(lp.Run.load(tmp_path / "run").spec).equals(table)


@pytest.mark.slow
@pytest.mark.usefixtures("stranger")
def test_a_run_that_is_gone_on_with_keeps_its_noise(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {"tasks": TASK, "protocols": PROTOCOL, "variants": FIRST_LAYER, "dtype": "bfloat16"}
    sweep(model, tmp_path / "run", **asked, limit=4, shots=0)
    monkeypatch.setattr("lensprune.sweeps.noise._measured", lambda *given: pytest.fail("it is measured again"))
    sweep(model, tmp_path / "run", **asked, limit=4, shots=0)
    assert not noise_table(read_spec(tmp_path / "run")).empty


def test_float32_has_none(model: Path) -> None:
    run = sweep(model, tasks=TASK, protocols=("default",), variants=FIRST_LAYER, limit=4)
    assert noise_table(run.spec).empty
    assert run.summary()["noise"].isna().all()
    assert not within_noise(run.summary()).any()


def made(lost: list[str]) -> lp.Run:
    """Ten layers of 40 items: the first loses all under both protocols, the others half or none."""
    run = layers_run(tasks=("facts",))
    noise = {"facts": {"default": {"float32": {"lost": lost, "won": []}}}}
    spec = replace(run.spec, execution=replace(run.spec.execution, noise=noise))
    return lp.Run(SweepSpec.from_json(spec.to_json()), run._store)


def legend_texts(axes: list[Axes]) -> list[str]:
    figure = axes[0].get_figure(root=True)
    assert figure is not None
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_small_changes_are_marked_in_table_and_figure() -> None:
    noisy, quiet = made(["item 3"]), made([])
    summary = noisy.summary()
    assert summary.loc[summary["protocol"] == "default", "noise"].tolist() == [1 / 40] * 11
    assert summary.loc[summary["protocol"] == "generate", "noise"].isna().all()
    marked = summary[within_noise(summary)]
    assert marked["variant"].tolist() == [f"L{layer}.skip" for layer in range(1, 10)]
    assert top_variants(summary, "facts", "default").count("within noise") == 4
    assert "within noise" not in top_variants(quiet.summary(), "facts", "default")
    axes = delta_by_depth(summary)
    assert "within noise" in legend_texts(axes)
    [crosses] = [line for line in axes[0].lines if line.get_gid() == "noise"]
    assert np.asarray(crosses.get_xdata()).tolist() == list(range(1, 10))
    assert not [line for line in axes[1].lines if line.get_gid() == "noise"]
    assert "within noise" not in legend_texts(delta_by_depth(quiet.summary()))


def test_texts_count_where_items_have_several_samples() -> None:
    spec = made(["item 3"]).spec
    sampled = replace(spec, conditions=tuple(replace(cell, generation={"samples": 2}) for cell in spec.conditions))
    assert noise_table(sampled)[["n", "flipped"]].to_numpy().tolist() == [[80, 1 / 80]]


def test_noise_that_is_none() -> None:
    run = made([])
    broken = replace(run.spec, execution=replace(run.spec.execution, noise={"facts": {"default": {"float32": 3}}}))
    with pytest.raises(UserError, match="noise in the run's spec can't be read"):
        noise_table(broken)


def test_a_loaded_model_is_not_loaded_again(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "lensprune"):
        table = lp.noise(tiny("llama", "bfloat16").module, TASK, limit=4, shots=0, progress=False)
    assert table["way"].tolist() == WAYS[:-1]
    assert "float32 is not compared" in caplog.text


@pytest.mark.slow
def test_the_command(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--task", TASK, "--limit", "4", "--shots", "0", "--dtype", "bfloat16", "--device", "cpu"]
    assert main(["noise", "--model", str(model), *options, "--out", str(tmp_path / "noise")]) == 0
    shown = capsys.readouterr().out
    written = pd.read_csv(tmp_path / "noise" / "noise.csv")
    assert written["way"].tolist() == WAYS
    assert f"up to {written['flipped'].max():.3f}" in shown
    assert main(["noise", "--model", str(model), *options, "--out", str(tmp_path / "noise"), "--json"]) == 0
    check_json_of(capsys.readouterr().out, tmp_path / "noise" / "noise.csv")
    assert main(["noise", "--model", str(model)]) == 2
    assert "no task given" in capsys.readouterr().err
