"""What sweeps took on this machine corrects the next plan, and nothing can go wrong by its file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import lensprune as lp
from lensprune import cli
from lensprune.costs.history import SWITCH, SpeedHistory, SpeedKey
from lensprune.sweeps.forecast import Spent, planned_and_taken

KEY = SpeedKey("cpu x86_64 Test", "float32", "forked", "score", 28)


def test_measured_over_planned_comes_back_and_the_latest_counts_most(tmp_path: Path) -> None:
    history = SpeedHistory(tmp_path / "deep" / "speed.json")
    assert history.correction(KEY).factor == 1
    history.add(KEY, 10.0, 30.0)
    assert (history.correction(KEY).factor, history.correction(KEY).sweeps) == (3.0, 1)
    history.add(KEY, 10.0, 10.0)
    # Half of what was known: (15 + 10) / (5 + 10).
    assert history.correction(KEY).factor == pytest.approx(25 / 15)
    assert SpeedHistory(history.path).correction(KEY).sweeps == 2


def test_another_kind_of_work_or_size_of_model_is_another_matter(tmp_path: Path) -> None:
    history = SpeedHistory(tmp_path / "speed.json")
    history.add(KEY, 10.0, 30.0)
    for other in (
        replace(KEY, kind="generate"), replace(KEY, dtype="bfloat16"), replace(KEY, executor="hooked"),
        replace(KEY, device="cuda"), replace(KEY, size=31),
    ):  # fmt: skip
        assert history.correction(other).sweeps == 0
    near = replace(KEY, size=30)
    assert history.correction(near).factor == 3
    history.add(near, 10.0, 20.0)
    assert (history.correction(near).factor, history.correction(KEY).factor) == (2.0, 3.0)


def test_short_work_says_nothing(tmp_path: Path) -> None:
    history = SpeedHistory(tmp_path / "speed.json")
    history.add(KEY, 0.01, 0.5)
    history.add(KEY, 0.0, 50.0)
    assert not (tmp_path / "speed.json").exists()


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", '{"version": 99, "measured": {}}', '{"version": 1}', '{"version": 1, "measured": {"a": 3}}',
        '{"version": 1, "measured": {"a": {"28": [0, 1, 1]}}}', '{"version": 1, "measured": {"a": {"x": [1, 1, 1]}}}',
        '{"version": 1, "measured": {"a": {"28": [1e999, 1, 1]}}}', "[" * 100_000,
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read_counts_as_absent_and_is_replaced(text: str, tmp_path: Path) -> None:
    path = tmp_path / "speed.json"
    path.write_text(text.replace('"a"', json.dumps(KEY.where)))
    history = SpeedHistory(path)
    assert history.correction(KEY).sweeps == 0
    history.add(KEY, 1.0, 2.0)
    assert history.correction(KEY).factor == 2


def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    history = SpeedHistory(tmp_path / "file" / "speed.json")
    history.add(KEY, 1.0, 2.0)
    assert history.correction(KEY).sweeps == 0


def test_the_variable_switches_it_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LENSPRUNE_CACHE", str(tmp_path))
    monkeypatch.setenv(SWITCH, "1")
    assert SpeedHistory.of_machine().path == tmp_path / "speed.json"
    monkeypatch.setenv(SWITCH, "0")
    SpeedHistory.of_machine().add(KEY, 1.0, 2.0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_plan_is_corrected_by_what_sweeps_took_and_a_given_speed_is_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("lensprune.costs.history.cache_root", lambda: tmp_path)
    monkeypatch.setenv(SWITCH, "1")
    plain = lp.plan("toy-distilled", "facts", "continuation", limit=2)
    assert "matrix products with forked" in str(plain)
    key = SpeedKey.of(plain.shape, device="cpu", dtype="float32", executor="forked", generates=False)
    SpeedHistory.of_machine().add(key, 2.0, 20.0)
    corrected = lp.plan("toy-distilled", "facts", "continuation", limit=2)
    assert (corrected.correction.factor, corrected.correction.sweeps) == (10.0, 1)
    assert "of matrix products × 10.00 (from 1 earlier sweep here) with forked" in str(corrected)
    assert corrected.seconds > 0
    given = lp.plan("toy-distilled", "facts", "continuation", limit=2, flops=1e12)
    assert given.correction.sweeps == 0


def test_the_line_of_one_process_and_of_workers() -> None:
    alone = Spent(60.0, 2 * 10**9, 90.0, 3 * 10**9, threads=2)
    assert planned_and_taken(alone) == "planned: 60.0 seconds and 2 GB; took: 90.0 seconds and 3 GB at the peak"
    several = Spent(60.0, 2 * 10**9, 90.0, None, threads=1, workers=4)
    assert planned_and_taken(several) == "planned: 60.0 seconds and 2 GB per worker; took: 90.0 seconds with 4 workers"
    assert several.stored["workers"] == 4
    assert "workers" not in alone.stored


@pytest.mark.slow
def test_a_sweep_says_what_was_planned_and_taken_and_keeps_both(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = ["sweep", "--model", "toy-distilled", "--task", "facts", "--protocol", "continuation", "--over", "layers"]
    out = tmp_path / "run"
    assert cli.main([*sweep, "--limit", "2", "--out", str(out)]) == 0
    said = capsys.readouterr().err
    assert "planned: " in said
    assert "| 00:" in said
    [process] = lp.Run.load(out).spec.execution.spent["processes"]
    assert process["planned_seconds"] > 0
    assert process["seconds"] > 0
    assert process["planned_memory"] > 10**8
    assert process["peak_memory"] is None or process["peak_memory"] > 10**8
    # Nothing is left to measure, so nothing is added and no bar is shown.
    assert cli.main([*sweep, "--limit", "2", "--out", str(out)]) == 0
    assert "| 00:" not in capsys.readouterr().err
    assert lp.Run.load(out).spec.execution.spent["processes"] == [process]
