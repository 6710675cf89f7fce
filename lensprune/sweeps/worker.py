"""Code that runs at a worker: load the model once, then measure units of cells as they arrive."""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from lensprune.errors import HookNeverFired, LensPruneError, UserError
from lensprune.runs.questions import questions_to_parquet
from lensprune.runs.records import CellKey
from lensprune.sweeps.conditions import questions_of
from lensprune.sweeps.options import SweepOptions
from lensprune.sweeps.prepare import prepare
from lensprune.sweeps.units import Unit

__all__ = ["CellWorker", "Failure", "Ready", "WorkerUpdate"]


@dataclass(frozen=True)
class Ready:
    """A loaded worker: the spec that it would run, as the text of spec.json, and by (task, protocol) the numbers of its
    requests (`block_requests`) and its questions, as `questions_to_parquet` writes them.

    `seconds` are those of one request here by (task, protocol) and variant, as planned; `memory`, bytes at the peak.
    """

    spec: str
    requests: dict[tuple[str, str], tuple[int, ...]]
    host: str
    questions: dict[tuple[str, str], bytes] = field(default_factory=dict)
    seconds: Mapping[tuple[str, str], Mapping[str, float]] = field(default_factory=dict)
    memory: int = 0

    def work(self, condition: tuple[str, str], variant: str, rows: float) -> float:
        """Seconds of `rows` requests of one (task, protocol) under a variant."""
        return rows * self.seconds[condition][variant]


@dataclass(frozen=True)
class Failure:
    """An error that would occur at any worker, in a form that any process can read."""

    kind: str
    message: str

    def raised(self) -> LensPruneError:
        """The error to raise in the process that started the sweep."""
        kinds: dict[str, type[LensPruneError]] = {"UserError": UserError, "HookNeverFired": HookNeverFired}
        if self.kind in kinds:
            return kinds[self.kind](self.message)
        return LensPruneError(self.message if self.kind == "LensPruneError" else f"{self.kind}: {self.message}")


@dataclass(frozen=True)
class WorkerUpdate:
    """What happened since the last poll: rows answered, by variant; cells finished; `done` when a unit is."""

    rows: Mapping[str, float] = field(default_factory=dict)
    cells: tuple[tuple[CellKey, pa.Table], ...] = ()
    ready: Ready | None = None
    done: bool = False
    failure: Failure | None = None

    @property
    def is_progress(self) -> bool:
        return bool(self.rows or self.cells or self.ready or self.done or self.failure)

    def and_then(self, later: WorkerUpdate) -> WorkerUpdate:
        """Combine two updates."""
        names = dict.fromkeys([*self.rows, *later.rows])
        return WorkerUpdate(
            {name: self.rows.get(name, 0.0) + later.rows.get(name, 0.0) for name in names},
            self.cells + later.cells,
            self.ready or later.ready,
            self.done or later.done,
            self.failure or later.failure,
        )


class CellWorker:
    """Loads a model and measures units in a separate thread, so that `poll` responds while it works."""

    def __init__(self, model: str, options: SweepOptions, threads: int | None = None) -> None:
        self._updates: queue.SimpleQueue[WorkerUpdate] = queue.SimpleQueue()
        self._units: queue.SimpleQueue[Unit] = queue.SimpleQueue()
        thread = threading.Thread(target=self._work, args=(model, options, threads), daemon=True)
        thread.start()

    def assign(self, unit: Unit) -> None:
        """Queue `unit` after those assigned before."""
        self._units.put(unit)

    def poll(self, seconds: float = 1.0) -> WorkerUpdate:
        """The next update; waits up to `seconds` for one."""
        try:
            update = self._updates.get(timeout=seconds)
        except queue.Empty:
            return WorkerUpdate()
        while True:
            try:
                update = update.and_then(self._updates.get_nowait())
            except queue.Empty:
                return update

    def _work(self, model: str, options: SweepOptions, threads: int | None) -> None:
        try:
            self._load_and_measure(model, options, threads)
        except Exception as error:
            self._updates.put(WorkerUpdate(failure=Failure(type(error).__name__, str(error))))

    def _load_and_measure(self, model: str, options: SweepOptions, threads: int | None) -> None:
        import torch

        from lensprune.costs.history import SpeedHistory
        from lensprune.engine import make_executor
        from lensprune.sweeps.blocks import block_requests, measure_block
        from lensprune.sweeps.cells import measure_cells
        from lensprune.sweeps.forecast import forecast

        if threads is not None:
            torch.set_num_threads(threads)
        job = prepare(model, options)
        executor = make_executor(options.executor, job.model, options.batch_tokens, options.memory)
        spec = replace(job.spec, execution=replace(job.spec.execution, executor=executor.name))
        condition_of = {condition.key: condition for condition in job.conditions}
        variants = {variant.name: variant for variant in job.variants}
        stopping = job.options.stopping
        requests = {key: block_requests(condition, stopping) for key, condition in condition_of.items()}
        questions = {key: questions_to_parquet(table) for key, table in questions_of(job.conditions).items()}
        work = [(condition, job.variants) for condition in job.conditions]
        planned = forecast(job, executor, work, SpeedHistory.of_machine())
        ready = Ready(spec.to_json(), requests, socket.gethostname(), questions, planned.row_seconds, planned.memory)
        self._updates.put(WorkerUpdate(ready=ready))

        def advance(variant: str, rows: float, *, known: bool = False) -> None:
            self._updates.put(WorkerUpdate(rows={variant: rows}))

        while True:
            unit = self._units.get()
            chosen: list[Any] = [variants[name] for name in unit.variants]
            condition = condition_of[unit.task, unit.protocol]
            cells = (
                measure_cells(job, condition, chosen, executor, advance)
                if stopping is None
                else measure_block(job, condition, unit.block, unit.variants, executor, advance)
            )
            for cell in cells:
                self._updates.put(WorkerUpdate(cells=(cell,)))
            self._updates.put(WorkerUpdate(done=True))
