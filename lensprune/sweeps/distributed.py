"""A sweep distributed to Ray workers, which may be on other machines; the results are those of a single process.

Each worker loads the model once and measures units of cells; records come back to this process, the only one that
writes the run folder. A worker that is lost or hangs is replaced; if this process is stopped, rerun the command to
resume, with any number of workers.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from lensprune.ablation.variants import CLEAN
from lensprune.analysis.decisions import next_block
from lensprune.errors import UserError
from lensprune.models.base import ModelOrName
from lensprune.results.run import Run
from lensprune.runs.cell_store import CellStore
from lensprune.runs.outcomes import Outcomes
from lensprune.runs.questions import questions_from_parquet
from lensprune.runs.records import CellKey
from lensprune.runs.spec import SweepSpec
from lensprune.runs.store import open_store, stopped_message
from lensprune.sweeps.blocks import blocks_left, decided_so_far
from lensprune.sweeps.forecast import Spent, planned_and_taken
from lensprune.sweeps.options import FEWSHOT, SweepOptions, Workers, option_values
from lensprune.sweeps.prepare import check_before_loading
from lensprune.sweeps.scheduler import Progress, Scheduler, WorkerLost
from lensprune.sweeps.units import Unit, UnitQueue
from lensprune.sweeps.worker import CellWorker, Ready, WorkerUpdate
from lensprune.terminal import WorkBar, work_bar

__all__ = ["STALL_SECONDS", "measure_on_workers", "run_on_ray"]

STALL_SECONDS = 1800.0
"""Seconds without progress after which a worker counts as hung; must be longer than loading a large model takes."""

_OBJECT_STORE_BYTES = 2**28
_POLL_SECONDS = 1.0


def run_on_ray(
    model: ModelOrName,
    options: SweepOptions,
    *,
    out: str | Path | None = None,
    progress: bool = True,
    stall_seconds: float = STALL_SECONDS,
) -> Run:
    """`lensprune.sweeps.run.run_sweep` with its cells spread over Ray workers.

    Args:
        model: a name or path that every worker can load.
        options: `workers` of them are started (``None``: one per GPU, on a cluster without GPUs one per CPU), on the
            cluster at `ray_address`, or on a local one that is started for the sweep.
        stall_seconds: see `STALL_SECONDS`.

    Raises:
        UserError: Ray is not installed or not reachable, the cluster is too small, the model was given as an object,
            and other invalid input of a sweep.
        LensPruneError: workers are lost again and again at the same place.
        KeyboardInterrupt: stopped by the user; the message says how to resume.
    """
    if not isinstance(model, (str, Path)):
        raise UserError(
            "a sweep over Ray workers needs a model's name or path, which every worker loads, not a loaded model"
        )
    folder = None if out is None else Path(out)
    check_before_loading(options, folder)
    with _ray(options.ray_address, options.workers) as ray:
        share = _share(ray, options)
        size = options.workers or _places(ray, share)
        pool = _RayPool(ray, _full_path(model), _for_workers(options), share)
        scheduler = Scheduler(pool, size, stall_seconds)
        ready = scheduler.first_ready()
        spec = _spec(SweepSpec.from_json(ready.spec, f"the spec of the worker on {ready.host}"), options)
        questions = {condition: questions_from_parquet(data) for condition, data in ready.questions.items()}
        with open_store(folder, spec, questions) as store:
            try:
                spent = measure_on_workers(scheduler, size, ready, store, spec, progress)
                if spent is not None:
                    execution = getattr(store, "spec", spec).execution.and_spent(spent.stored)
                    store.keep_execution(execution)
                    spec = replace(spec, execution=execution)
                    print(planned_and_taken(spent, at_most=options.stopping is not None), file=sys.stderr)
                run = Run(spec, store, folder)
                if folder is not None:
                    run.save()
            except KeyboardInterrupt:
                total = len(spec.conditions) * len(spec.variants) if spec.stopping is None else None
                by_calling = "sweep" if spec.has_hooks else None
                raise KeyboardInterrupt(stopped_message(store, total, by_calling)) from None
    return run


def _full_path(given: str | Path) -> str:
    """The full path of a local path, because workers have a different working folder; any other name unchanged."""
    path = Path(given).expanduser()
    return str(path.resolve()) if path.exists() else str(given)


def _for_workers(options: SweepOptions) -> SweepOptions:
    """The options of one worker: the same sweep in a single process."""
    return replace(
        options,
        backend=None,
        workers=None,
        ray_address=None,
        data_dir=None if options.data_dir is None else _full_path(options.data_dir),
        reference=options.reference if str(options.reference) == FEWSHOT else _full_path(options.reference),
    )


def _spec(of_worker: SweepSpec, options: SweepOptions) -> SweepSpec:
    execution = replace(of_worker.execution, backend=options.backend, **option_values(options, Workers))
    return replace(of_worker, execution=execution)


def measure_on_workers(
    scheduler: Scheduler,
    size: int,
    ready: Ready,
    store: CellStore,
    spec: SweepSpec,
    progress: bool,
) -> Spent | None:
    """Let the workers of `scheduler` measure all cells that `store` lacks.

    Args:
        size: number of workers.
        ready: a loaded worker, which says what each request will take.

    Returns:
        Time and memory taken, if `progress` is shown and anything was missing.
    """
    finished = store.finished()
    groups = [
        (c.task, c.protocol, [n for n in spec.variant_names if CellKey(n, c.task, c.protocol) not in finished])
        for c in spec.conditions
    ]
    requests = ready.requests
    if spec.stopping is None:
        total = sum(ready.work((t, p), name, sum(requests[t, p])) for t, p, names in groups for name in names)
    else:
        total = sum(blocks_left(Outcomes(spec, store), requests, ready.work).values())
    began = time.perf_counter()
    with work_bar({"": total}, shown=progress) as bar:

        def advance(condition: tuple[str, str], variant: str, rows: float) -> None:
            bar.done(ready.work(condition, variant, rows), "")

        if spec.stopping is not None:
            _measure_blocks(scheduler, size, ready, Outcomes(spec, store), store, bar, advance)
        else:
            bar.stage(f"{size} workers")
            scheduler.run(UnitQueue(groups, size), store, spec, advance)
        bar.set_left({})
        for condition in spec.conditions:
            store.forget_answers(condition.task, condition.protocol)
        if not progress or not bar.finished:
            return None
    return Spent(total / size, ready.memory, time.perf_counter() - began, None, threads=1, workers=size)


def _measure_blocks(
    scheduler: Scheduler,
    size: int,
    ready: Ready,
    outcomes: Outcomes,
    store: CellStore,
    bar: WorkBar,
    advance: Progress,
) -> None:
    """Measure a block of every task and protocol that has one left, then the next, because verdicts need all cells of a
    block. The clean model comes first: the others are compared with it wherever the sweep is stopped."""
    while True:
        next_blocks = {c: block for c in outcomes.conditions if (block := next_block(outcomes, *c)) is not None}
        if not next_blocks:
            return
        bar.set_left(blocks_left(outcomes, ready.requests, ready.work))
        bar.stage(f"{size} workers, {decided_so_far(outcomes)}")
        blocks = [block.block for block in next_blocks.values()]
        for clean in (True, False):
            groups = [(*c, [n for n in block.lack if (n == CLEAN.name) is clean]) for c, block in next_blocks.items()]
            scheduler.run(UnitQueue(groups, size, blocks), store, outcomes.spec, advance)


@contextmanager
def _ray(address: str | None, workers: int | None) -> Iterator[Any]:
    """A connection to the cluster at `address`, or a local cluster; one that was there before is used and left."""
    # Ray reports usage statistics unless this is turned off.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise UserError("spreading a sweep needs Ray: pip install 'lensprune[ray]'") from None
    if ray.is_initialized():
        yield ray
        return
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    local = {
        "num_cpus": max(workers or 0, os.cpu_count() or 1),
        "include_dashboard": False,
        "object_store_memory": _OBJECT_STORE_BYTES,
    }
    try:
        ray.init(address=address or "local", **quiet, **({} if address else local))
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        where = "a local Ray cluster can't be started" if address is None else f"no Ray cluster answers at {address!r}"
        raise UserError(f"{where}: {lines[0]}") from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _share(ray: Any, options: SweepOptions) -> dict[str, int]:
    """The resources of one worker.

    Raises:
        UserError: the cluster lacks them.
    """
    total = ray.cluster_resources()
    on_gpu = total.get("GPU", 0) > 0 and not (options.device or "").startswith("cpu")
    share = {"num_cpus": 1, "num_gpus": (options.n_devices or 1) if on_gpu else 0}
    if options.n_devices is not None and options.n_devices > 1 and not on_gpu:
        raise UserError(f"n_devices={options.n_devices} needs GPUs, and the Ray cluster has none for this sweep")
    largest = max((node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"]), default=0)
    if share["num_gpus"] > largest:
        raise UserError(
            f"n_devices={options.n_devices} is not possible: the largest node of the Ray cluster has {largest:g} GPUs"
        )
    return share


def _places(ray: Any, share: dict[str, int]) -> int:
    """Number of workers for which the cluster has room."""
    total = ray.cluster_resources()
    wanted = {"CPU": share["num_cpus"], "GPU": share["num_gpus"]}
    fitting = [int(total.get(name, 0) // amount) for name, amount in wanted.items() if amount]
    return max(1, min(fitting))


class _RayPool:
    """Workers that are Ray actors; see `lensprune.sweeps.scheduler.WorkerPool`."""

    def __init__(self, ray: Any, model: str, options: SweepOptions, share: dict[str, int]) -> None:
        self._ray = ray
        # No restart by Ray itself: a worker that comes back must be given its cells again, which the scheduler does.
        self._actor = ray.remote(CellWorker).options(**share, max_restarts=0, max_task_retries=0)
        self._arguments = (model, options, share["num_cpus"])
        self._actors: dict[int, Any] = {}
        self._asked: dict[Any, int] = {}
        self._started = 0

    def start(self) -> int:
        self._started += 1
        self._actors[self._started] = self._actor.remote(*self._arguments)
        self._ask(self._started)
        return self._started

    def _ask(self, worker: int) -> None:
        self._asked[self._actors[worker].poll.remote(_POLL_SECONDS)] = worker

    def assign(self, worker: int, unit: Unit) -> None:
        self._actors[worker].assign.remote(unit)

    def updates(self, seconds: float) -> Sequence[tuple[int, WorkerUpdate | WorkerLost]]:
        waiting = list(self._asked)
        first, _ = self._ray.wait(waiting, num_returns=1, timeout=seconds)
        if not first:
            return []
        answered, _ = self._ray.wait(waiting, num_returns=len(waiting), timeout=0)
        answers: list[tuple[int, WorkerUpdate | WorkerLost]] = []
        for answer in answered:
            worker = self._asked.pop(answer)
            try:
                answers.append((worker, self._ray.get(answer)))
                self._ask(worker)
            except self._ray.exceptions.RayError as error:
                lines = str(error).strip().splitlines() or [type(error).__name__]
                answers.append((worker, WorkerLost(lines[0])))
        return answers

    def stop(self, worker: int) -> None:
        self._asked = {answer: owner for answer, owner in self._asked.items() if owner != worker}
        self._ray.kill(self._actors.pop(worker))
