"""What goes wrong around a sweep costs no record: a full disk, no memory, a clock that jumps, a hub that is away."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

import lensprune as lp
from lensprune import cli
from lensprune.engine import forked as forked_engine
from lensprune.engine import make_executor
from lensprune.errors import UserError
from lensprune.output import files
from lensprune.runs.records import CellKey
from lensprune.sweeps.cells import measure_cells
from lensprune.sweeps.options import SweepOptions
from lensprune.sweeps.prepare import prepare
from lensprune.sweeps.selection import VariantSelection
from tests.helpers.families import save_folder
from tests.helpers.sweeps import sweep
from tests.helpers.tolerances import assert_records_agree, assert_tensors_agree, size_of

TASKS = ("facts", "arithmetic")
PROTOCOLS = ("continuation", "generate")
CELLS = 16
NUMBERS = ["gold_logprob", "logprob_margin"]
Recorded = Callable[[str, object], None]


@pytest.fixture(scope="module")
def folder(family_folder: Callable[[str], Path]) -> Path:
    return family_folder("llama")


@pytest.fixture(autouse=True)
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than these sweeps."""
    monkeypatch.setattr("lensprune.results.outputs.shown_analyses", lambda outcomes, saved: [])


@pytest.fixture(scope="module")
def whole(folder: Path) -> pd.DataFrame:
    return sweep(folder, None).records()


def lost(out: Path, whole: pd.DataFrame) -> int:
    """Records of `whole` that the run in `out` lacks; fails unless there are none and each is the same."""
    found = lp.Run.load(out).records()
    missing = len(whole) - len(found)
    pd.testing.assert_frame_equal(found, whole)
    return missing


WRITES = {"write": (Path, "write_bytes"), "sync": (os, "fsync"), "rename": (os, "replace")}


@pytest.mark.slow
@pytest.mark.parametrize("step", WRITES)
@pytest.mark.parametrize("after", [0, 1, 6])
def test_disk_full(
    folder: Path,
    whole: pd.DataFrame,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    after: int,
    record_property: Recorded,
) -> None:
    owner, name = WRITES[step]
    original, calls, out = getattr(owner, name), 0, tmp_path / "run"

    def full(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > after:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(*arguments)

    monkeypatch.setattr(owner, name, full)
    with pytest.raises(UserError, match="the disk is full"):
        sweep(folder, out)
    monkeypatch.undo()
    assert not list(out.rglob(f"{files.TEMPORARY_PREFIX}*"))
    sweep(folder, out)
    record_property("tried", 1)
    record_property("records_lost", lost(out, whole))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB, where this user may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    options = ["-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(["mount", *options], capture_output=True, check=False).returncode:
        pytest.skip("no permission to mount a file system")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.slow
def test_a_disk_that_is_really_full_and_really_read_only(
    folder: Path, whole: pd.DataFrame, small_disk: Path, record_property: Recorded
) -> None:
    out = small_disk / "run"
    with pytest.raises(UserError, match=r"the disk is full.*lensprune resume"):
        sweep(folder, out)
    assert 0 < len(lp.Run.load(out).finished()) < CELLS
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(UserError, match="read-only"):
        sweep(folder, out)
    with pytest.raises(UserError, match=r"read-only|no permission"):
        sweep(folder, small_disk / "other")
    subprocess.run(["mount", "-o", "remount,rw,size=4m", str(small_disk)], check=True)
    sweep(folder, out)
    record_property("tried", 3)
    record_property("records_lost", lost(out, whole))


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_folder_that_may_not_be_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, record_property: Recorded
) -> None:
    mkdir = Path.mkdir

    def refuse(self: Path, *arguments: Any, **options: Any) -> None:
        if self.name == "run":
            raise OSError(number, os.strerror(number))
        mkdir(self, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UserError, match=r"read-only|no permission"):
        sweep(folder, tmp_path / "run")
    assert not list(tmp_path.iterdir())
    record_property("tried", 1)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["fork_variants", "GroupDecoder"])
def test_out_of_memory_halves_the_budget_and_goes_on(
    folder: Path,
    whole: pd.DataFrame,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    where: str,
    record_property: Recorded,
) -> None:
    original, failures = getattr(forked_engine, where), iter([False, True, True, False, True])

    def short_of_memory(*arguments: Any, **named: Any) -> Any:
        if next(failures, False):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return original(*arguments, **named)

    monkeypatch.setattr(forked_engine, where, short_of_memory)
    sweep(folder, tmp_path / "run")
    assert caplog.text.count("out of memory") >= 2
    found = lp.Run.load(tmp_path / "run").records()
    # A smaller batch may round differently.
    assert_records_agree(found, whole, torch.float32, at_most=1e-5)
    record_property("tried", caplog.text.count("out of memory"))
    record_property("records_lost", len(whole) - len(found))


@pytest.mark.parametrize("share", ["all", "some"])
def test_weights_that_are_not_numbers(tmp_path: Path, share: str, record_property: Recorded) -> None:
    folder = save_folder("llama", tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.1.self_attn.q_proj.weight"
    if share == "all":
        weights = {key: torch.full_like(value, float("nan")) for key, value in weights.items()}
    else:
        weights[name][3, 5] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"NaN\): its weight .* holds NaN or infinity"):
        sweep(folder, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    record_property("tried", 1)


@pytest.mark.slow
def test_a_clock_that_goes_backwards(
    folder: Path, whole: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Recorded
) -> None:
    now = 4e9

    def backwards() -> float:
        nonlocal now
        now -= 3600.0
        return now

    monkeypatch.setattr(time, "time", backwards)
    sweep(folder, tmp_path / "run", progress=True)
    for path in (tmp_path / "run").rglob("*.parquet"):
        os.utime(path, (5e9, 5e9))
    sweep(folder, tmp_path / "run", progress=True)
    record_property("tried", 2)
    record_property("records_lost", lost(tmp_path / "run", whole))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("budget", [None, 64])
def test_the_order_of_cells_and_the_batch_do_not_change_the_records(
    folder: Path, whole: pd.DataFrame, seed: int, budget: int | None
) -> None:
    choose = random.Random(seed)
    options = SweepOptions(
        tasks=TASKS,
        protocols=PROTOCOLS,
        variants=VariantSelection("layers", "skip"),
        limit=3,
        shots=0,
        device="cpu",
        batch_tokens=budget,
    )
    job = prepare(str(folder), options)
    executor = make_executor("forked", job.model, budget)
    cells: dict[CellKey, pd.DataFrame] = {}
    for condition in choose.sample(job.conditions, len(job.conditions)):
        variants = choose.sample(job.variants, len(job.variants))
        cut = choose.randint(1, len(variants) - 1)
        for part in (variants[:cut], variants[cut:]):
            for key, table in measure_cells(job, condition, part, executor, lambda *done, **known: None):
                cells[key] = table.to_pandas().drop(columns="metrics")
    assert len(cells) == CELLS
    for key, found in cells.items():
        chosen = (whole[["variant", "task", "protocol"]] == list(key[:3])).all(axis=1)
        expected = whole[chosen].reset_index(drop=True).drop(columns=["metrics"])
        same = ["item_id", "prediction", "correct", "failure", "n_tokens", "text"]
        pd.testing.assert_frame_equal(found[same], expected[same])
        # Cells of generations hold no numbers: the size is that of the whole run's.
        size = size_of(whole[NUMBERS])
        assert_tensors_agree(found[NUMBERS], expected[NUMBERS], torch.float32, size=size, at_most=1e-5)


def command(arguments: list[str], **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "lensprune", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A shell's background job ignores SIGINT, and so do its children: let them be interrupted all the same."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_stops_cleanly_and_says_how_to_go_on(folder: Path, tmp_path: Path, record_property: Recorded) -> None:
    out = tmp_path / "run"
    # The first task's cells are stored long before the last task is begun, on the fastest machine too.
    tasks = [word for task in ("facts", "arithmetic", "kv_retrieval") for word in ("--task", task)]
    condition = [*tasks, "--protocol", "generate", "--over", "heads", "--limit", "60", "--shots", "0"]
    process = command(["sweep", "--model", str(folder), *condition, "--device", "cpu", "--out", str(out)])
    end = time.monotonic() + 300
    while not list((out / "records").glob("[!.]*.parquet")) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    last = errors.strip().splitlines()[-1]
    assert last.startswith("lensprune: stopped: ")
    assert last.endswith(f"resume with: lensprune resume {out}")
    stored = len(lp.Run.load(out).finished())
    assert 0 < stored < 39
    assert f"stopped: {stored} of 39 cells" in last
    assert not list(out.rglob(f"{files.TEMPORARY_PREFIX}*"))
    record_property("tried", 1)


@pytest.mark.slow
def test_a_hub_that_is_unreachable(tmp_path: Path, record_property: Recorded) -> None:
    # A port of this machine on which nobody listens.
    away = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "LENSPRUNE_OFFLINE": "0"}
    process = command(["sweep", "--model", "lensprune-tests/none", "--task", "facts"], HF_HUB_OFFLINE="0", **away)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 2, errors
    [line] = [line for line in errors.splitlines() if line.startswith("lensprune: error:")]
    assert "lensprune-tests/none" in line
    assert "connection" in line
    record_property("tried", 1)


def changed_weights(model: Path, rows: Path) -> None:
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"] *= 1.5
    save_file(weights, model / "model.safetensors", {"format": "pt"})


def changed_row(model: Path, rows: Path) -> None:
    lines = rows.read_text().splitlines()
    row = json.loads(lines[0])
    row["question_stem"] = "Something else is"
    rows.write_text("\n".join([json.dumps(row), *lines[1:]]))


def one_row_less(model: Path, rows: Path) -> None:
    rows.write_text("\n".join(rows.read_text().splitlines()[1:]))


@pytest.mark.parametrize(
    ("change", "named"),
    [(changed_weights, "the model's weights"), (changed_row, "items"), (one_row_less, "numbers of items")],
)
def test_what_changed_under_a_run_is_named(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Path, Path], None],
    named: str,
    record_property: Recorded,
) -> None:
    model = save_folder("llama", tmp_path / "model")
    rows = tmp_path / "data" / "facts" / "test.jsonl"
    rows.parent.mkdir(parents=True)
    row = {"question_stem": "Grass is", "choices": {"text": ["green", "blue"], "label": ["A", "B"]}, "answerKey": "A"}
    row["fact1"] = "Grass is a green plant."
    row["subject"] = "plants"
    rows.write_text("\n".join(json.dumps({"id": f"x-{i}", **row}) for i in range(3)))
    out = tmp_path / "run"
    options = ["--task", "facts", "--shots", "0", "--device", "cpu", "--data-dir", str(tmp_path / "data")]
    assert cli.main(["sweep", "--model", str(model), *options, "--out", str(out)]) == 0
    [first, *_] = sorted((out / "records").glob("*.parquet"))
    first.unlink()
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    change(model, rows)
    capsys.readouterr()
    assert cli.main(["resume", str(out)]) == 2
    message = capsys.readouterr().err
    assert f"contains another run ({named}" in message
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    record_property("tried", 1)


@pytest.mark.slow
def test_a_damaged_cell_is_named_set_aside_and_computed_again(
    folder: Path,
    whole: pd.DataFrame,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    record_property: Recorded,
) -> None:
    out = tmp_path / "run"
    sweep(folder, out)
    paths = sorted((out / "records").glob("*.parquet"))
    damages: list[Callable[[bytes], bytes]] = [
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: data[:100] + bytes([data[100] ^ 1]) + data[101:],
        lambda data: data + b"x",
        lambda data: paths[0].read_bytes()[::-1],
    ]
    for path, damage in zip(paths[3:], damages, strict=False):
        path.write_bytes(damage(path.read_bytes()))
    # A whole cell of this run under another cell's name.
    paths[-1].write_bytes(paths[-2].read_bytes())
    resumed = lp.resume(out, progress=False)
    damaged = [*paths[3 : 3 + len(damages)], paths[-1]]
    assert all(path.name in caplog.text for path in damaged)
    assert len(list((out / "damaged").iterdir())) == len(damaged)
    pd.testing.assert_frame_equal(resumed.records(), whole)
    record_property("tried", len(damaged))
    record_property("records_lost", lost(out, whole))
