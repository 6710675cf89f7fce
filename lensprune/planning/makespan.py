"""Duration of a sweep with a given number of workers, from the scheduler on a simulated clock."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from lensprune.costs.speed import estimated_seconds
from lensprune.engine.registry import executor_info
from lensprune.errors import UserError
from lensprune.planning.result import Plan
from lensprune.runs.store import RunStore
from lensprune.sweeps.units import UnitQueue

__all__ = ["GroupTime", "Makespan", "makespan", "planned_times", "recorded_times"]


@dataclass(frozen=True)
class GroupTime:
    """Seconds of one (task, protocol): per cell, and once per unit for the clean model that variants fork from."""

    task: str
    protocol: str
    cells: int
    cell_seconds: float
    unit_seconds: float = 0.0


@dataclass(frozen=True)
class Makespan:
    """Duration of a sweep with `workers` workers.

    `seconds`: until the last worker is done, loading included; `units`: how many were distributed; `work`: what all
    workers together spent on cells and units; `efficiency`: time of one worker over `workers` times this one.
    """

    workers: int
    seconds: float
    units: int
    work: float
    efficiency: float


def makespan(groups: Sequence[GroupTime], workers: int, load_seconds: float = 0.0) -> Makespan:
    """Simulate a sweep: each worker loads the model for `load_seconds`, then takes units until none is left.

    Raises:
        UserError: no worker, no cell, or a time below zero.
    """
    if workers < 1:
        raise UserError(f"workers {workers} is not a usable number of workers: expected 1 or more")
    if not groups or any(group.cells < 1 for group in groups):
        raise UserError("there are no cells to simulate: expected groups of one cell or more")
    if load_seconds < 0 or any(min(group.cell_seconds, group.unit_seconds) < 0 for group in groups):
        raise UserError("a time below zero can't be simulated: expected seconds of 0 or more")
    seconds, units, work = _simulate(groups, workers, load_seconds)
    alone, _, _ = _simulate(groups, 1, load_seconds)
    return Makespan(workers, seconds, units, work, alone / (workers * seconds) if seconds else 1.0)


def _simulate(groups: Sequence[GroupTime], workers: int, load_seconds: float) -> tuple[float, int, float]:
    times = {(group.task, group.protocol): group for group in groups}
    queue = UnitQueue([(g.task, g.protocol, [str(i) for i in range(g.cells)]) for g in groups], workers)
    free = [load_seconds] * workers
    last, units, work = load_seconds, 0, 0.0
    while (unit := queue.next()) is not None:
        group = times[unit.task, unit.protocol]
        taken = group.unit_seconds + len(unit.variants) * group.cell_seconds
        end = heapq.heappop(free) + taken
        heapq.heappush(free, end)
        last, units, work = max(last, end), units + 1, work + taken
    return last, units, work


def planned_times(plan: Plan) -> list[GroupTime]:
    """Times of every (task, protocol) of a plan; the clean pass counts once per unit.

    With an executor that shares no work it counts in every cell.
    """
    weights, number = plan.memory.weights, plan.memory.weights // plan.shape.parameters
    shares_work = executor_info(plan.executor).shares_work
    groups = []
    for condition in plan.conditions:
        cost = condition.shared if shares_work else condition.unshared
        whole = plan.correction.factor * estimated_seconds(cost, plan.speed, weights, number)
        clean = whole / plan.n_variants if shares_work else 0.0
        groups.append(
            GroupTime(condition.task, condition.protocol, plan.n_variants, (whole - clean) / plan.n_variants, clean)
        )
    return groups


def recorded_times(folder: str | Path) -> list[GroupTime]:
    """Mean time of a cell of every (task, protocol) of a run on disk, from when its files were written.

    Pauses of a stopped run count too, so use one that ran without interruption.

    Raises:
        UserError: no run there, a damaged record file, or fewer than two cells.
    """
    store = RunStore.open(folder)
    written = sorted((store.written_at(key), key) for key in store.finished())
    if len(written) < 2:
        raise UserError(f"{folder} has {len(written)} finished cells: expected two or more, to take times from")
    spent: dict[tuple[str, str], list[float]] = defaultdict(list)
    for (before, _), (after, key) in pairwise(written):
        spent[key.task, key.protocol].append(after - before)
    return [
        GroupTime(task, protocol, len(seconds), sum(seconds) / len(seconds))
        for (task, protocol), seconds in spent.items()
    ]
