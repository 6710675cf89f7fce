"""A sweep spread over workers of a local Ray cluster: the records of one process, whatever becomes of a worker."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import lensprune as lp
from lensprune.cli import main
from lensprune.errors import UserError
from lensprune.runs.folder import read_spec
from lensprune.runs.store import RunStore
from lensprune.sweeps.distributed import run_on_ray
from lensprune.sweeps.options import SweepOptions
from lensprune.sweeps.run import run_sweep
from lensprune.sweeps.selection import VariantSelection
from tests.helpers.tolerances import assert_records_agree

ray = pytest.importorskip("ray")
psutil = pytest.importorskip("psutil")
pytestmark = pytest.mark.slow

OPTIONS = SweepOptions(
    tasks=("facts", "arithmetic"),
    protocols=("continuation", "generate"),
    variants=VariantSelection("heads", "zero"),
    limit=4,
    shots=1,
    device="cpu",
)


@pytest.fixture(scope="module")
def folder(family_folder: Callable[[str], Path]) -> Path:
    return family_folder("llama")


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """One local cluster for all tests, as a sweep finds it when it is run inside of a Ray program."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=2**27, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> lp.Run:
    return run_sweep(str(folder), OPTIONS, out=tmp_path_factory.mktemp("whole") / "run", progress=False)


def on_ray(**changes: Any) -> SweepOptions:
    return replace(OPTIONS, backend="ray", workers=2, **changes)


def assert_same_records(run: lp.Run, whole: lp.Run) -> None:
    # Another set of variants in a batch may round differently.
    mine, expected = run.records(prompts=True), whole.records(prompts=True)
    assert_records_agree(mine, expected, torch.float32, at_most=1e-5)
    assert mine["prompt"].str.len().min() > 0


def test_workers_sample_what_one_process_samples(folder: Path, tmp_path: Path) -> None:
    asked = replace(OPTIONS, protocols=("generate",), temperature=1.0, top_k=50, samples=2, max_new_tokens=6)
    alone = run_sweep(str(folder), asked, out=tmp_path / "alone", progress=False)
    spread = run_sweep(str(folder), replace(asked, backend="ray", workers=2), out=tmp_path / "spread", progress=False)
    mine, expected = spread.records(), alone.records()
    assert mine["text"].tolist() == expected["text"].tolist()
    assert mine["sample"].tolist() == [0, 1] * (len(mine) // 2)
    assert mine["text"].nunique() > len(mine) / 10
    assert spread.spec.digest == alone.spec.digest


def worker_processes() -> list[int]:
    """Processes of Ray workers that have an actor of ours."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "CellWorker" in "".join(process.cmdline()):
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


class Saboteur(threading.Thread):
    """Sends `signal` to one worker as soon as `cells` are stored."""

    def __init__(self, out: Path, number: int, cells: int = 2) -> None:
        super().__init__(daemon=True)
        self.out, self.number, self.cells = out, number, cells
        self.hit: int | None = None
        self.stored_then = 0

    def run(self) -> None:
        while self.hit is None:
            self.stored_then = len(list((self.out / "records").glob("[!.]*.parquet")))
            workers = worker_processes()
            if self.stored_then >= self.cells and workers:
                self.hit = workers[0]
                os.kill(self.hit, self.number)
            time.sleep(0.01)


def test_two_workers_give_the_records_of_one_process(folder: Path, whole: lp.Run, tmp_path: Path) -> None:
    run = run_on_ray(str(folder), on_ray(), out=tmp_path / "run", progress=False)
    assert_same_records(run, whole)
    spec = read_spec(tmp_path / "run")
    assert (spec.execution.backend, spec.execution.executor, spec.execution.workers) == ("ray", "forked", 2)
    assert spec.digest == whole.spec.digest


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hanging"])
def test_a_lost_worker_is_replaced(
    folder: Path, whole: lp.Run, tmp_path: Path, number: int, record_property: Callable[[str, object], None]
) -> None:
    out = tmp_path / "run"
    saboteur = Saboteur(out, number)
    saboteur.start()
    # Long enough to load the model on a busy machine.
    run = run_on_ray(str(folder), on_ray(), out=out, progress=False, stall_seconds=20)
    saboteur.join(10)
    assert saboteur.hit is not None
    assert saboteur.stored_then < len(whole.finished())
    assert_same_records(run, whole)
    record_property("tried", 1)
    record_property("records_lost", len(whole.records()) - len(run.records()))


def test_a_stopped_driver_goes_on_by_resume(
    folder: Path, whole: lp.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, write, written = tmp_path / "run", RunStore.write, 0

    def stop(store: RunStore, *args: Any) -> None:
        nonlocal written
        if written == 5:
            raise KeyboardInterrupt
        written += 1
        write(store, *args)

    monkeypatch.setattr(RunStore, "write", stop)
    with pytest.raises(KeyboardInterrupt, match="5 of 52 cells are stored; resume with: lensprune resume"):
        run_on_ray(str(folder), on_ray(), out=out, progress=False)
    monkeypatch.undo()
    assert main(["resume", str(out), "--workers", "1"]) == 0
    assert "52 cells" in capsys.readouterr().out
    assert_same_records(lp.Run.load(out), whole)


def test_planned_looks_give_the_verdicts_of_one_process_also_when_stopped(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    early = replace(
        OPTIONS, tasks=("arithmetic",), protocols=("continuation",), limit=None, lost_more_than=0.02, looks="20,40,80"
    )
    alone = run_sweep(str(folder), early, progress=False)
    sizes = alone.summary().set_index("variant")["n"]
    assert sizes.nunique() > 1
    out, write, written = tmp_path / "run", RunStore.write, 0

    def stop(store: RunStore, *args: Any) -> None:
        nonlocal written
        if written == len(sizes) + 1:
            raise KeyboardInterrupt
        written += 1
        write(store, *args)

    monkeypatch.setattr(RunStore, "write", stop)
    with pytest.raises(KeyboardInterrupt, match="blocks of cells"):
        run_on_ray(str(folder), replace(early, backend="ray", workers=2), out=out, progress=False)
    monkeypatch.undo()
    assert main(["resume", str(out), "--workers", "1"]) == 0
    spread = lp.Run.load(out)
    assert spread.spec.digest == alone.spec.digest
    assert len(list((out / "records").glob("*.parquet"))) == alone.n_stored
    columns = ["variant", "n", "accuracy", "delta", "p_value", "q_loss", "at_chance"]
    assert spread.summary()[columns].equals(alone.summary()[columns])


def test_what_a_worker_refuses_is_said_here(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="layer 99"):
        run_on_ray(str(folder), on_ray(variants=VariantSelection("layers", "skip", layers="99")), progress=False)
    with pytest.raises(UserError, match=r"largest node|needs GPUs"):
        run_on_ray(str(folder), on_ray(device=None, n_devices=64), progress=False)
    assert not list(tmp_path.iterdir())
