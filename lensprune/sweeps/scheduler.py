"""Distribute cells to workers that may be slow, hang, die or join late; every cell is stored once."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from lensprune.errors import LensPruneError, UserError
from lensprune.runs.cell_store import CellStore
from lensprune.runs.records import CellKey
from lensprune.runs.spec import SweepSpec
from lensprune.runs.spec_difference import first_difference
from lensprune.sweeps.units import Unit, UnitQueue
from lensprune.sweeps.worker import Ready, WorkerUpdate

__all__ = ["Progress", "Scheduler", "WorkerLost", "WorkerPool"]

logger = logging.getLogger("lensprune")

MAX_LOSSES = 5
"""How many workers may be lost at the same cells without finishing one, or in a row before any is loaded."""

_POLL_SECONDS = 1.0
Progress = Callable[[tuple[str, str], str, float], object]
"""Called with (task, protocol), variant and number of rows processed."""
_WARN_SECONDS = 60.0


@dataclass(frozen=True)
class WorkerLost:
    """A worker is gone; `why` is a human-readable reason."""

    why: str


class WorkerPool(Protocol):
    """Workers by number, wherever they run."""

    def start(self) -> int:
        """Start one more worker, which may have to wait for room."""
        ...

    def assign(self, worker: int, unit: Unit) -> None: ...

    def updates(self, seconds: float) -> Sequence[tuple[int, WorkerUpdate | WorkerLost]]:
        """Updates from workers; waits up to `seconds` for the first one. Silent workers are not included."""
        ...

    def stop(self, worker: int) -> None:
        """End a worker, whatever it does."""
        ...


@dataclass
class _State:
    """The state of one worker. `progress_at` is ``None`` until it answered for the first time."""

    progress_at: float | None = None
    ready: Ready | None = None
    unit: Unit | None = None
    left: set[str] = field(default_factory=set)
    rows: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))


class Scheduler:
    """Keeps `size` workers busy; a lost or stalled one is replaced and its unfinished cells are redistributed.

    Args:
        stall_seconds: time without progress after which a worker that has answered is given up.
    """

    def __init__(
        self, pool: WorkerPool, size: int, stall_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.pool = pool
        self.size = size
        self.stall_seconds = stall_seconds
        self.lost = 0
        """Workers that were lost or given up."""
        self._clock = clock
        self._workers: dict[int, _State] = {}
        self._lost_in_a_row = 0
        self._began = clock()
        self._warned = False
        self._first_ready: Ready | None = None
        for _ in range(size):
            self._start()

    def first_ready(self) -> Ready:
        """Wait for the first worker that has loaded the model; it reports the questions of the run.

        Raises:
            LensPruneError: workers can't load it, or are lost before they have.
        """
        while self._first_ready is None:
            self._listen(None, None, lambda condition, variant, rows: None)
        return self._first_ready

    def run(self, queue: UnitQueue, store: CellStore, spec: SweepSpec, progress: Progress) -> None:
        """Let all cells of `queue` be measured and store them.

        Args:
            spec: spec of the run; a worker whose spec would give different results is refused.
            progress: called with (task, protocol), variant and rows processed; with a negative number where a lost
                worker's answers are discarded.

        Raises:
            UserError, HookNeverFired, LensPruneError: as a worker raised it; a worker that would give other numbers;
                cells at which workers are lost again and again.
        """
        for state in self._workers.values():
            self._check(state, spec)
        while queue.cells or any(state.unit is not None for state in self._workers.values()):
            for worker, state in self._workers.items():
                if state.ready is not None and state.unit is None and (unit := queue.next()) is not None:
                    state.unit, state.left, state.rows = unit, set(unit.variants), defaultdict(float)
                    state.progress_at = self._clock()
                    self.pool.assign(worker, unit)
            self._listen(queue, (store, spec), progress)

    def _start(self) -> None:
        self._workers[self.pool.start()] = _State()

    def _listen(
        self,
        queue: UnitQueue | None,
        run: tuple[CellStore, SweepSpec] | None,
        progress: Progress,
    ) -> None:
        for worker, update in self.pool.updates(_POLL_SECONDS):
            state = self._workers.get(worker)
            if state is None:
                continue
            if isinstance(update, WorkerLost):
                self._give_up(worker, update.why, queue, progress)
            else:
                self._take(state, update, run, progress)
        now = self._clock()
        for worker, state in list(self._workers.items()):
            busy = state.ready is None or state.unit is not None
            if busy and state.progress_at is not None and now - state.progress_at > self.stall_seconds:
                why = f"no progress for {now - state.progress_at:.0f} seconds"
                self._give_up(worker, why, queue, progress)
        self._warn_of_waiting(now)

    def _take(
        self,
        state: _State,
        update: WorkerUpdate,
        run: tuple[CellStore, SweepSpec] | None,
        progress: Progress,
    ) -> None:
        if update.is_progress or state.progress_at is None:
            state.progress_at = self._clock()
        if update.failure is not None:
            raise update.failure.raised()
        if update.ready is not None:
            self._first_ready = self._first_ready or update.ready
            # Others have the same questions, which their specs' hashes show, so they are kept once.
            state.ready = replace(update.ready, questions={})
            self._lost_in_a_row = 0
        if run is None:
            return
        store, spec = run
        if update.ready is not None:
            self._check(state, spec)
        if state.unit is not None:
            for variant, rows in update.rows.items():
                state.rows[variant] += rows
                progress((state.unit.task, state.unit.protocol), variant, rows)
        for key, table in update.cells:
            # Only cells of this worker's current unit that it has not sent yet: each is stored once.
            if state.unit is not None and key.variant in state.left:
                store.write(CellKey(*key), table)
                state.left.discard(key.variant)
        if update.done and state.unit is not None:
            if state.left:
                raise LensPruneError(f"a worker left out {', '.join(sorted(state.left))} on {state.unit.task}")
            state.unit = None

    def _check(self, state: _State, spec: SweepSpec) -> None:
        if state.ready is None:
            return
        difference = first_difference(spec, SweepSpec.from_json(state.ready.spec, f"worker on {state.ready.host}"))
        if difference is not None:
            raise UserError(f"the worker on {state.ready.host} would give other numbers ({difference})")

    def _give_up(self, worker: int, why: str, queue: UnitQueue | None, progress: Progress) -> None:
        state = self._workers.pop(worker)
        self.lost += 1
        self.pool.stop(worker)
        where = "" if state.ready is None else f" on {state.ready.host}"
        if state.ready is None:
            self._lost_in_a_row += 1
            if self._lost_in_a_row >= MAX_LOSSES:
                raise LensPruneError(f"{MAX_LOSSES} workers in a row were lost while they loaded the model; {why}")
        unit = state.unit
        logger.warning("a worker%s was lost (%s): another one takes its cells", where, why)
        if unit is not None and queue is not None and state.left:
            finished = len(unit.variants) - len(state.left)
            for name in state.left & state.rows.keys():
                progress((unit.task, unit.protocol), name, -state.rows[name])
            left = tuple(name for name in unit.variants if name in state.left)
            # A worker that finished some of the cells was not lost at the same place as those before it.
            losses = 1 if finished else unit.losses + 1
            if losses >= MAX_LOSSES:
                raise LensPruneError(
                    f"{MAX_LOSSES} workers were lost while they measured {left[0]} and {len(left) - 1} more on "
                    f"{unit.task} under {unit.protocol}; {why}"
                )
            queue.put_back(replace(unit, variants=left, losses=losses))
        self._start()

    def _warn_of_waiting(self, now: float) -> None:
        waiting = sum(state.progress_at is None for state in self._workers.values())
        if waiting and not self._warned and now - self._began > _WARN_SECONDS:
            self._warned = True
            logger.warning(
                "%d of %d workers have not started: the cluster has no room for them yet", waiting, self.size
            )
