"""Items that the clean model answers otherwise in half precision, against sweeps in both number types."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import lensprune as lp
from lensprune.cli import main
from lensprune.errors import UserError
from lensprune.results.figures.depth import delta_by_depth
from lensprune.results.text import top_variants
from lensprune.runs.noise import noise_floor, noise_lines, noise_table, within_noise
from lensprune.runs.spec import SweepSpec
from lensprune.runs.store import read_spec
from tests.helpers.made_runs import layers_run
from tests.helpers.sweeps import sweep
from tests.helpers.tiny_models import folder, tiny

TASK, PROTOCOLS = "facts", ("default", "continuation")
ASKED = {"limit": 40, "shots": 0}
WAYS = ["batches of 256 tokens", "batches of 2048 tokens", "hooked", "float32"]


@pytest.fixture(scope="module")
def model() -> Path:
    return folder("llama")


@pytest.fixture(scope="module")
def table(model: Path) -> pd.DataFrame:
    return lp.noise(str(model), TASK, PROTOCOLS, dtype="bfloat16", device="cpu", progress=False, **ASKED)


def right(model: Path, dtype: str, **options: str) -> dict[str, pd.Series]:
    run = sweep(model, tasks=TASK, protocols=PROTOCOLS, variants=[lp.each_layer(tiny("llama").facts)[0]],
                dtype=dtype, **ASKED, **options)  # fmt: skip
    records = run.records("clean")
    return {protocol: rows.set_index("item_id")["correct"] for protocol, rows in records.groupby("protocol")}


def test_items_that_float32_and_the_other_executor_flip(table: pd.DataFrame, model: Path) -> None:
    assert table["way"].tolist() == WAYS * len(PROTOCOLS)
    half = right(model, "bfloat16")
    for way, options in (("float32", {"dtype": "float32"}), ("hooked", {"dtype": "bfloat16", "executor": "hooked"})):
        other = right(model, **options)
        for protocol in PROTOCOLS:
            [row] = table[(table["way"] == way) & (table["protocol"] == protocol)].to_dict("records")
            changed = half[protocol] != other[protocol]
            assert set(row["items"].split()) == set(changed.index[changed])
            assert row["lost"] == (half[protocol] & ~other[protocol]).sum()
            assert row["won"] == (~half[protocol] & other[protocol]).sum()
            assert row["flipped"] == pytest.approx(changed.mean())
            assert row["n"] == 40
    assert table.loc[table["way"] == "float32", "flipped"].sum() > 0, "an untrained model ties often enough"


def test_a_sweep_in_half_precision_knows_its_noise(
    table: pd.DataFrame, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = sweep(model, tmp_path / "run", tasks=TASK, protocols=PROTOCOLS, dtype="bfloat16", progress=True, **ASKED)
    summary = run.summary()
    for protocol in PROTOCOLS:
        floor = table.loc[table["protocol"] == protocol, "flipped"].max()
        assert noise_floor(run.spec, TASK, protocol) == pytest.approx(floor)
        rows = summary[summary["protocol"] == protocol]
        assert rows["noise"].to_numpy() == pytest.approx(floor)
        marked = within_noise(rows)
        expected = (rows["delta"].abs() <= floor) & (rows["variant"] != "clean") & (floor > 0)
        assert marked.tolist() == expected.tolist()
    assert noise_lines(run.spec)[0] in capsys.readouterr().err
    again = lp.Run.load(tmp_path / "run")
    assert noise_table(again.spec).equals(noise_table(run.spec))
    # Gone on with, it is not measured again.
    spec = read_spec(tmp_path / "run")
    resumed = sweep(model, tmp_path / "run", tasks=TASK, protocols=PROTOCOLS, dtype="bfloat16", **ASKED)
    assert resumed.spec.execution.noise == spec.execution.noise


def test_float32_has_none(model: Path) -> None:
    run = sweep(model, tasks=TASK, protocols=("default",), limit=4)
    assert noise_table(run.spec).empty
    assert run.summary()["noise"].isna().all()
    assert not within_noise(run.summary()).any()


def made(lost: list[str]) -> lp.Run:
    """Ten layers of 40 items: the first loses all under both protocols, the others half or none."""
    run = layers_run(tasks=("facts",))
    noise = {"facts": {"default": {"float32": {"lost": lost, "won": []}}}}
    spec = replace(run.spec, execution=replace(run.spec.execution, noise=noise))
    return lp.Run(SweepSpec.from_json(spec.to_json()), run._store)


def test_small_changes_are_marked_in_table_and_figure() -> None:
    noisy, quiet = made(["item 3"]), made([])
    summary = noisy.summary()
    assert summary.loc[summary["protocol"] == "default", "noise"].tolist() == [1 / 40] * 11
    assert summary.loc[summary["protocol"] == "generate", "noise"].isna().all()
    marked = summary[within_noise(summary)]
    assert marked["variant"].tolist() == [f"L{layer}.skip" for layer in range(1, 10)]
    assert top_variants(summary, "facts", "default").count("within noise") == 4
    assert "within noise" not in top_variants(quiet.summary(), "facts", "default")
    [ax] = delta_by_depth(summary)
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert "within noise" in texts
    hollow = [points for points in ax.collections if len(points.get_offsets()) == 9]
    assert np.asarray(hollow[0].get_offsets())[:, 0].tolist() == list(range(1, 10))
    [ax] = delta_by_depth(quiet.summary())
    assert "within noise" not in [text.get_text() for text in ax.get_legend().get_texts()]


def test_noise_that_is_none() -> None:
    run = made([])
    broken = replace(run.spec, execution=replace(run.spec.execution, noise={"facts": {"default": {"float32": 3}}}))
    with pytest.raises(UserError, match="noise in the run's spec can't be read"):
        noise_table(broken)


def test_a_loaded_model_is_not_loaded_again(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "lensprune"):
        table = lp.noise(tiny("llama", "bfloat16").module, TASK, limit=4, shots=0, progress=False)
    assert table["way"].tolist() == WAYS[:-1]
    assert "float32 is left out" in caplog.text


def test_the_command(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--task", TASK, "--limit", "4", "--shots", "0", "--dtype", "bfloat16", "--device", "cpu"]
    assert main(["noise", "--model", str(model), *options, "--out", str(tmp_path / "noise")]) == 0
    shown = capsys.readouterr().out
    written = pd.read_csv(tmp_path / "noise" / "noise.csv")
    assert written["way"].tolist() == WAYS
    assert f"up to {written['flipped'].max():.3f}" in shown
    assert main(["noise", "--model", str(model)]) == 2
    assert "no task is given" in capsys.readouterr().err
