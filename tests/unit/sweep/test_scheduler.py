"""Dealing out cells: every cell is stored once, whatever workers do; without Ray, on a clock of the test's own."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

import lensprune as lp
from lensprune.ablation.variants import CLEAN
from lensprune.errors import HookNeverFired, LensPruneError, UserError
from lensprune.runs.cell_store import MemoryStore
from lensprune.runs.records import CellKey
from lensprune.sweeps.options import SweepOptions, executor_options
from lensprune.sweeps.scheduler import Scheduler, WorkerLost
from lensprune.sweeps.selection import VariantSelection
from lensprune.sweeps.units import Unit, UnitQueue
from lensprune.sweeps.worker import CellWorker, Failure, Ready, WorkerUpdate
from tests.helpers.made_cells import skip, spec, table

VARIANTS = (CLEAN, *(skip(layer) for layer in range(12)))
SPEC = spec(VARIANTS, tasks=("t", "u"))
ROWS = {("t", "default"): (4,), ("u", "default"): (4,)}
READY = Ready(SPEC.to_json(), ROWS, "here")


class FakePool:
    """Workers that load in one step and measure one cell per step; `fate(worker, step)` may end or silence them."""

    def __init__(self, fate: Callable[[int, int], str] = lambda worker, step: "works", ready: Ready = READY) -> None:
        self.fate = fate
        self.ready = ready
        self.now = 0.0
        self.steps: dict[int, int] = {}
        self.work: dict[int, list[tuple[str, str, str]]] = {}
        self.measured: list[tuple[str, str, str]] = []
        self.units: list[Unit] = []
        self.started = 0

    def start(self) -> int:
        self.started += 1
        self.steps[self.started] = 0
        return self.started

    def assign(self, worker: int, unit: Unit) -> None:
        assert not self.work.get(worker), "a worker has one unit at a time"
        self.work[worker] = [(name, unit.task, unit.protocol) for name in unit.variants]
        self.units.append(unit)

    def updates(self, seconds: float) -> Sequence[tuple[int, WorkerUpdate | WorkerLost]]:
        self.now += 1.0
        answers: list[tuple[int, WorkerUpdate | WorkerLost]] = []
        for worker in list(self.steps):
            self.steps[worker] += 1
            what = self.fate(worker, self.steps[worker])
            if what == "dies":
                del self.steps[worker]
                answers.append((worker, WorkerLost("it was killed")))
            elif what == "fails":
                answers.append((worker, WorkerUpdate(failure=Failure("HookNeverFired", "no hook"))))
            elif what == "works":
                answers.append((worker, self._step(worker)))
            else:
                answers.append((worker, WorkerUpdate()))
        return answers

    def _step(self, worker: int) -> WorkerUpdate:
        if self.steps[worker] == 1:
            return WorkerUpdate(ready=self.ready)
        if not self.work.get(worker):
            return WorkerUpdate()
        name, task, protocol = self.work[worker].pop(0)
        self.measured.append((name, task, protocol))
        variant = next(v for v in VARIANTS if v.name == name)
        cell = (CellKey(name, task, protocol), table(variant, [True] * 4, task=task))
        return WorkerUpdate(rows={name: 4}, cells=(cell,), done=not self.work[worker])

    def stop(self, worker: int) -> None:
        self.steps.pop(worker, None)
        self.work.pop(worker, None)


def run(pool: FakePool, size: int = 3, stall: float = 10.0) -> tuple[MemoryStore, int, Scheduler]:
    store, rows = MemoryStore(), 0

    def progress(cell: tuple[str, str], variant: str, n: int) -> None:
        nonlocal rows
        rows += n

    scheduler = Scheduler(pool, size, stall, clock=lambda: pool.now)
    assert scheduler.first_ready() == pool.ready
    groups = [(task, "default", SPEC.variant_names) for task in ("t", "u")]
    scheduler.run(UnitQueue(groups, size), store, SPEC, progress)
    return store, rows, scheduler


def expected() -> set[CellKey]:
    return {CellKey(name, task, "default") for task in ("t", "u") for name in SPEC.variant_names}


def test_every_cell_once_and_every_worker_busy() -> None:
    pool = FakePool()
    store, rows, scheduler = run(pool)
    assert store.finished() == expected()
    assert len(pool.measured) == len(expected())
    assert rows == 4 * len(expected())
    assert scheduler.lost == 0
    assert len({unit.task for unit in pool.units}) == 2
    assert len(pool.units[0].variants) > len(pool.units[-1].variants) == 1


def test_the_questions_of_one_worker_are_kept() -> None:
    questions = {("t", "default"): b"asked"}
    pool = FakePool(ready=replace(READY, questions=questions))
    # The first one loads late, so that another one is the first to be ready.
    pool.fate = lambda worker, step: "hangs" if (worker, step) == (1, 1) else "works"
    scheduler = Scheduler(pool, 3, 10.0, clock=lambda: pool.now)
    assert scheduler.first_ready().questions == questions
    assert [state.ready.questions for state in scheduler._workers.values() if state.ready is not None] == [{}, {}]


@pytest.mark.parametrize("seed", range(20))
def test_workers_that_die_and_hang_at_random_lose_nothing(
    seed: int, record_property: Callable[[str, object], None]
) -> None:
    choose = random.Random(seed)
    fates = {worker: (choose.randint(4, 7), choose.choice(["dies", "hangs"])) for worker in range(1, 6)}

    def fate(worker: int, step: int) -> str:
        when, what = fates.get(worker, (10**9, ""))
        return what if step >= when else "works"

    pool = FakePool(fate)
    store, rows, scheduler = run(pool)
    assert store.finished() == expected()
    assert rows == 4 * len(expected())
    assert scheduler.lost >= 1
    assert pool.started == 3 + scheduler.lost
    record_property("tried", scheduler.lost)
    record_property("records_lost", 4 * len(expected() - store.finished()))


def test_cells_that_kill_every_worker_end_the_sweep() -> None:
    with pytest.raises(LensPruneError, match=r"5 workers were lost while they measured .* on [tu] .*killed"):
        run(FakePool(lambda worker, step: "dies" if step == 2 else "works"), size=1)


def test_workers_that_never_load_end_the_sweep() -> None:
    with pytest.raises(LensPruneError, match="5 workers in a row were lost while they loaded the model; it was killed"):
        run(FakePool(lambda worker, step: "dies"))
    with pytest.raises(LensPruneError, match="loaded the model; no progress for"):
        run(FakePool(lambda worker, step: "silent"))


def test_a_workers_error_is_raised_here() -> None:
    with pytest.raises(HookNeverFired, match="no hook"):
        run(FakePool(lambda worker, step: "fails" if worker == 2 and step == 4 else "works"))


def test_a_worker_with_other_weights_is_refused() -> None:
    pool = FakePool()
    other = Ready(spec(VARIANTS, tasks=("t", "u"), weights_hash="x" * 64).to_json(), ROWS, "there")
    step = pool._step

    def second_is_other(worker: int) -> WorkerUpdate:
        update = step(worker)
        return WorkerUpdate(ready=other) if worker == 2 and update.ready else update

    pool._step = second_is_other  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"worker on there would give other numbers .the model's weights"):
        run(pool)


def test_workers_that_wait_for_room_are_no_stall(caplog: pytest.LogCaptureFixture) -> None:
    pool = FakePool()
    update = pool.updates

    def only_first(seconds: float) -> Sequence[tuple[int, WorkerUpdate | WorkerLost]]:
        pool.now += 9.0
        return [(worker, what) for worker, what in update(seconds) if worker == 1]

    pool.updates = only_first  # type: ignore[method-assign]
    with caplog.at_level(logging.WARNING, logger="lensprune"):
        store, _, scheduler = run(pool, stall=30.0)
    assert store.finished() == expected()
    assert scheduler.lost == 0
    assert "2 of 3 workers have not started" in caplog.text


def test_a_worker_in_this_process_measures_what_it_is_given(family_folder: Callable[[str], Path]) -> None:
    options = SweepOptions(
        tasks=("facts",), protocols=("continuation",), variants=VariantSelection("layers", "skip"), limit=2, shots=0
    )
    worker = CellWorker(str(family_folder("llama")), options)
    update = WorkerUpdate()
    while update.ready is None and update.failure is None:
        update = update.and_then(worker.poll())
    assert update.failure is None
    worker.assign(Unit("facts", "continuation", ("L1.skip", "clean")))
    while not update.done and update.failure is None:
        update = update.and_then(worker.poll())
    assert update.failure is None
    assert {key.variant for key, _ in update.cells} == {"L1.skip", "clean"}
    assert update.ready is not None
    cell, n = ("facts", "continuation"), update.ready.requests["facts", "continuation"][0]
    assert update.rows == {"clean": n, "L1.skip": n}
    # The later the change, the fewer layers are computed again.
    assert update.ready.work(cell, "L1.skip", n) > update.ready.work(cell, "L2.skip", n) > 0
    assert update.ready.memory > 0


def test_a_worker_measures_a_block_of_a_sweep_that_stops_early(family_folder: Callable[[str], Path]) -> None:
    options = SweepOptions(
        tasks=("facts",),
        protocols=("continuation",),
        variants=VariantSelection("layers", "skip"),
        shots=0,
        lost_more_than=0.05,
        looks="1,3",
    )
    worker = CellWorker(str(family_folder("llama")), options)
    worker.assign(Unit("facts", "continuation", ("L1.skip",), block=1))
    update = WorkerUpdate()
    while not update.done and update.failure is None:
        update = update.and_then(worker.poll())
    [(key, cell)] = update.cells
    assert key == CellKey("L1.skip", "facts", "continuation", 1)
    drawn = [item.id for item in lp.load_task("facts", limit=3, shots=0).items]
    assert cell.column("item_id").to_pylist() == drawn[1:]
    assert update.ready is not None
    first, second = update.ready.requests["facts", "continuation"]
    assert update.rows == {"L1.skip": second}
    assert second == 2 * first > 0


def test_units_are_of_one_block() -> None:
    queue = UnitQueue([("t", "default", ["a", "b"]), ("u", "default", ["a"])], 1, [2, 0])
    units = [unit for _ in range(5) if (unit := queue.next()) is not None]
    assert {(unit.task, unit.block) for unit in units} == {("t", 2), ("u", 0)}
    assert sorted(name for unit in units for name in unit.variants) == ["a", "a", "b"]


def test_a_worker_that_cannot_load_says_why() -> None:
    options = SweepOptions(
        tasks=("facts",), protocols=("continuation",), variants=VariantSelection("layers", "skip"), limit=2
    )
    update = CellWorker("no-such-model", options).poll(60)
    assert update.failure is not None
    error = update.failure.raised()
    assert isinstance(error, UserError)
    assert "no-such-model" in str(error)


@pytest.mark.parametrize(
    ("asked", "fields"),
    [("forked", ("forked", None)), ("ray", ("forked", "ray")), ("ray:hooked", ("hooked", "ray"))],
)
def test_executor_and_spread_are_told_apart(asked: str, fields: tuple[str, str | None]) -> None:
    options = executor_options(asked)
    assert (options["executor"], options["backend"]) == fields


def test_workers_without_ray_are_refused() -> None:
    with pytest.raises(UserError, match="number of workers is given, but the sweep runs in one process"):
        SweepOptions(tasks=("facts",), protocols=("default",), variants=VariantSelection(), workers=2)
    with pytest.raises(UserError, match="workers 0 is not a usable number"):
        SweepOptions(tasks=("facts",), protocols=("default",), variants=VariantSelection(), backend="ray", workers=0)
