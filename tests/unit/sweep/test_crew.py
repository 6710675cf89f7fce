"""Dealing out cells: every cell is stored once, whatever workers do; without Ray, on a clock of the test's own."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from lensprune.ablation.variants import CLEAN
from lensprune.errors import HookNeverFired, LensPruneError, UserError
from lensprune.runs.records import CellKey
from lensprune.runs.store import MemoryStore
from lensprune.sweeps.crew import Foreman, WorkerLost
from lensprune.sweeps.options import SweepOptions, executor_options
from lensprune.sweeps.selection import VariantSelection
from lensprune.sweeps.units import Unit, UnitQueue
from lensprune.sweeps.worker import CellWorker, Failure, News, Ready
from tests.helpers.made_cells import skip, spec, table

VARIANTS = (CLEAN, *(skip(layer) for layer in range(12)))
SPEC = spec(VARIANTS, tasks=("t", "u"))
ROWS = {("t", "default"): 4, ("u", "default"): 4}
READY = Ready(SPEC.to_json(), ROWS, "here")


class FakeCrew:
    """Workers that load in one step and measure one cell a step; `fate(worker, step)` may end or silence them."""

    def __init__(self, fate: Callable[[int, int], str] = lambda worker, step: "works", ready: Ready = READY) -> None:
        self.fate = fate
        self.ready = ready
        self.now = 0.0
        self.steps: dict[int, int] = {}
        self.work: dict[int, list[tuple[str, str, str]]] = {}
        self.measured: list[tuple[str, str, str]] = []
        self.units: list[Unit] = []
        self.hired = 0

    def hire(self) -> int:
        self.hired += 1
        self.steps[self.hired] = 0
        return self.hired

    def assign(self, worker: int, unit: Unit) -> None:
        assert not self.work.get(worker), "a worker has one unit at a time"
        self.work[worker] = [(name, unit.task, unit.protocol) for name in unit.variants]
        self.units.append(unit)

    def news(self, seconds: float) -> Sequence[tuple[int, News | WorkerLost]]:
        self.now += 1.0
        found: list[tuple[int, News | WorkerLost]] = []
        for worker in list(self.steps):
            self.steps[worker] += 1
            what = self.fate(worker, self.steps[worker])
            if what == "dies":
                del self.steps[worker]
                found.append((worker, WorkerLost("it was killed")))
            elif what == "fails":
                found.append((worker, News(failure=Failure("HookNeverFired", "no hook"))))
            elif what == "works":
                found.append((worker, self._step(worker)))
            else:
                found.append((worker, News()))
        return found

    def _step(self, worker: int) -> News:
        if self.steps[worker] == 1:
            return News(ready=self.ready)
        if not self.work.get(worker):
            return News()
        name, task, protocol = self.work[worker].pop(0)
        self.measured.append((name, task, protocol))
        variant = next(v for v in VARIANTS if v.name == name)
        cell = (CellKey(name, task, protocol), table(variant, [True] * 4, task=task))
        return News(rows=4, cells=(cell,), done=not self.work[worker])

    def dismiss(self, worker: int) -> None:
        self.steps.pop(worker, None)
        self.work.pop(worker, None)


def run(crew: FakeCrew, size: int = 3, stall: float = 10.0) -> tuple[MemoryStore, int, Foreman]:
    store, rows = MemoryStore(), 0

    def progress(n: int) -> None:
        nonlocal rows
        rows += n

    foreman = Foreman(crew, size, stall, clock=lambda: crew.now)
    assert foreman.first_ready() == crew.ready
    groups = [(task, "default", SPEC.variant_names) for task in ("t", "u")]
    foreman.run(UnitQueue(groups, size), store, SPEC, progress)
    return store, rows, foreman


def expected() -> set[CellKey]:
    return {CellKey(name, task, "default") for task in ("t", "u") for name in SPEC.variant_names}


def test_every_cell_once_and_every_worker_busy() -> None:
    crew = FakeCrew()
    store, rows, foreman = run(crew)
    assert store.finished() == expected()
    assert len(crew.measured) == len(expected())
    assert rows == 4 * len(expected())
    assert foreman.lost == 0
    assert len({unit.task for unit in crew.units}) == 2
    assert len(crew.units[0].variants) > len(crew.units[-1].variants) == 1


def test_the_questions_of_one_worker_are_kept() -> None:
    questions = {("t", "default"): b"asked"}
    crew = FakeCrew(ready=replace(READY, questions=questions))
    # The first one loads late, so that another one is the first to be ready.
    crew.fate = lambda worker, step: "hangs" if (worker, step) == (1, 1) else "works"
    foreman = Foreman(crew, 3, 10.0, clock=lambda: crew.now)
    assert foreman.first_ready().questions == questions
    assert [state.ready.questions for state in foreman._workers.values() if state.ready is not None] == [{}, {}]


@pytest.mark.parametrize("seed", range(20))
def test_workers_that_die_and_hang_at_random_lose_nothing(
    seed: int, record_property: Callable[[str, object], None]
) -> None:
    choose = random.Random(seed)
    fates = {worker: (choose.randint(4, 7), choose.choice(["dies", "hangs"])) for worker in range(1, 6)}

    def fate(worker: int, step: int) -> str:
        when, what = fates.get(worker, (10**9, ""))
        return what if step >= when else "works"

    crew = FakeCrew(fate)
    store, rows, foreman = run(crew)
    assert store.finished() == expected()
    assert rows == 4 * len(expected())
    assert foreman.lost >= 1
    assert crew.hired == 3 + foreman.lost
    record_property("tried", foreman.lost)
    record_property("records_lost", 4 * len(expected() - store.finished()))


def test_cells_that_kill_every_worker_end_the_sweep() -> None:
    with pytest.raises(LensPruneError, match=r"5 workers were lost while they measured .* on [tu] .*killed"):
        run(FakeCrew(lambda worker, step: "dies" if step == 2 else "works"), size=1)


def test_workers_that_never_load_end_the_sweep() -> None:
    with pytest.raises(LensPruneError, match="5 workers in a row were lost while they loaded the model; it was killed"):
        run(FakeCrew(lambda worker, step: "dies"))
    with pytest.raises(LensPruneError, match="loaded the model; no progress for"):
        run(FakeCrew(lambda worker, step: "silent"))


def test_a_workers_error_is_raised_here() -> None:
    with pytest.raises(HookNeverFired, match="no hook"):
        run(FakeCrew(lambda worker, step: "fails" if worker == 2 and step == 4 else "works"))


def test_a_worker_with_other_weights_is_refused() -> None:
    crew = FakeCrew()
    other = Ready(spec(VARIANTS, tasks=("t", "u"), weights_hash="x" * 64).to_json(), ROWS, "there")
    step = crew._step

    def second_is_other(worker: int) -> News:
        news = step(worker)
        return News(ready=other) if worker == 2 and news.ready else news

    crew._step = second_is_other  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"worker on there would give other numbers .the model's weights"):
        run(crew)


def test_workers_that_wait_for_room_are_no_stall(caplog: pytest.LogCaptureFixture) -> None:
    crew = FakeCrew()
    news = crew.news

    def only_first(seconds: float) -> Sequence[tuple[int, News | WorkerLost]]:
        crew.now += 9.0
        return [(worker, what) for worker, what in news(seconds) if worker == 1]

    crew.news = only_first  # type: ignore[method-assign]
    with caplog.at_level(logging.WARNING, logger="lensprune"):
        store, _, foreman = run(crew, stall=30.0)
    assert store.finished() == expected()
    assert foreman.lost == 0
    assert "2 of 3 workers have not begun" in caplog.text


def test_a_worker_in_this_process_measures_what_it_is_given(family_folder: Callable[[str], Path]) -> None:
    options = SweepOptions(
        tasks=("facts",), protocols=("continuation",), variants=VariantSelection("layers", "skip"), limit=2, shots=0
    )
    worker = CellWorker(str(family_folder("llama")), options)
    news = News()
    while news.ready is None and news.failure is None:
        news = news.and_then(worker.poll())
    assert news.failure is None
    worker.assign(Unit("facts", "continuation", ("L1.skip", "clean")))
    while not news.done and news.failure is None:
        news = news.and_then(worker.poll())
    assert news.failure is None
    assert {key.variant for key, _ in news.cells} == {"L1.skip", "clean"}
    assert news.ready is not None
    assert news.rows == 2 * news.ready.requests["facts", "continuation"]


def test_a_worker_that_cannot_load_says_why() -> None:
    options = SweepOptions(
        tasks=("facts",), protocols=("continuation",), variants=VariantSelection("layers", "skip"), limit=2
    )
    news = CellWorker("no-such-model", options).poll(60)
    assert news.failure is not None
    error = news.failure.raised()
    assert isinstance(error, UserError)
    assert "no-such-model" in str(error)


@pytest.mark.parametrize(
    ("asked", "fields"),
    [("forked", ("forked", None)), ("ray", ("forked", "ray")), ("ray:hooked", ("hooked", "ray"))],
)
def test_executor_and_spread_are_told_apart(asked: str, fields: tuple[str, str | None]) -> None:
    options = executor_options(asked)
    assert (options["executor"], options["spread"]) == fields


def test_workers_without_ray_are_refused() -> None:
    with pytest.raises(UserError, match="number of workers is given but the sweep is not spread"):
        SweepOptions(tasks=("facts",), protocols=("default",), variants=VariantSelection(), workers=2)
    with pytest.raises(UserError, match="workers 0 is not a usable number"):
        SweepOptions(tasks=("facts",), protocols=("default",), variants=VariantSelection(), spread="ray", workers=0)
