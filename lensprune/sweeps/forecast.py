"""What the missing cells of a sweep will take, and what they took: for its bar, its last line and its spec."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from lensprune.ablation.variants import Variant
from lensprune.costs.history import Correction, SpeedHistory, SpeedKey
from lensprune.costs.memory import peak_memory
from lensprune.costs.shape import ModelShape, loaded_shape
from lensprune.costs.shared import shared_costs
from lensprune.costs.speed import Speed, estimated_seconds, measure_speed
from lensprune.costs.unshared import unshared_cost
from lensprune.engine.base import Executor
from lensprune.engine.registry import executor_info
from lensprune.models.loading_memory import loading_bytes
from lensprune.output.quantities import duration, quantity
from lensprune.sweeps.conditions import Condition
from lensprune.sweeps.prepare import SweepJob

__all__ = ["Forecast", "Spent", "Work", "forecast", "memory_used", "planned_and_taken"]

_QUICKLY = 0.1
Work = Sequence[tuple[Condition, Sequence[Variant]]]


@dataclass(frozen=True)
class Forecast:
    """Seconds of one request by (task, protocol) and variant, corrected by earlier sweeps on this machine; and peak
    memory (bytes).

    Args:
        corrections: by (task, protocol), with the key under which measured times are kept.
    """

    row_seconds: Mapping[tuple[str, str], Mapping[str, float]]
    kinds: Mapping[str, float]
    """Seconds of scoring and of generating."""
    corrections: Mapping[tuple[str, str], tuple[SpeedKey, Correction]]
    seconds: float
    memory: int

    def work(self, condition: tuple[str, str], variant: str, rows: float) -> float:
        """Seconds of `rows` requests of one (task, protocol) under a variant."""
        return rows * self.row_seconds[condition][variant]

    def kind(self, condition: tuple[str, str]) -> str:
        """``score`` or ``generate``."""
        return self.corrections[condition][0].kind

    def remember(self, condition: tuple[str, str], work: float, taken: float, history: SpeedHistory) -> None:
        """Record that work of one (task, protocol), planned at `work` seconds, took `taken`."""
        key, correction = self.corrections[condition]
        history.add(key, work / correction.factor, taken)


def forecast(job: SweepJob, executor: Executor, work: Work, history: SpeedHistory) -> Forecast:
    """Count the requests of `work` as `lensprune.planning.plan` does, and time this machine for a moment.

    Args:
        work: each (task, protocol) with the variants that it lacks.
    """
    facts, shape, shares_work = job.model.facts, loaded_shape(job.model), executor_info(executor.name).shares_work
    number = getattr(torch, facts.dtype)
    speed = _speed(shape.d_model, shape, number, facts.device, torch.get_num_threads())
    budget = getattr(executor, "limits", None) or getattr(executor, "max_tokens", None)
    weights = shape.parameters * number.itemsize
    row_seconds, corrections = {}, {}
    kinds: dict[str, float] = defaultdict(float)
    for condition, variants in work:
        requests = condition.requests
        if shares_work:
            costs = shared_costs(shape, facts, requests, variants, budget)
        else:
            costs = dict.fromkeys((v.name for v in variants), unshared_cost(shape, requests, 1, budget))
        key = SpeedKey.of(
            shape, device=facts.device, dtype=facts.dtype, executor=executor.name, generates=condition.generates
        )
        correction = history.correction(key)
        seconds = {
            name: correction.factor * estimated_seconds(cost, speed, weights, number.itemsize)
            for name, cost in costs.items()
        }
        row_seconds[condition.key] = {name: of_all / len(requests) for name, of_all in seconds.items()}
        corrections[condition.key] = key, correction
        kinds[key.kind] += sum(seconds.values())
    memory = peak_memory(
        shape,
        facts,
        [condition.requests for condition, variants in work if variants],
        job.variants,
        shares_work=shares_work,
        bytes_a_number=number.itemsize,
        budget=budget,
        loading=0 if job.spec.execution.model is None else loading_bytes(job.spec.execution.model, number),
    )
    return Forecast(row_seconds, dict(kinds), corrections, sum(kinds.values()), memory.total)


@lru_cache(maxsize=32)
def _speed(d_model: int, shape: ModelShape, number: torch.dtype, device: str, threads: int) -> Speed:
    return measure_speed(shape, number, device, seconds=_QUICKLY)


@dataclass(frozen=True)
class Spent:
    """Planned and measured time and memory of the cells that one process, or `workers`, measured."""

    planned_seconds: float
    planned_memory: int
    seconds: float
    peak_memory: int | None
    threads: int
    workers: int = 1
    """Memory is per worker; `seconds` is for all of them in parallel."""

    @property
    def stored(self) -> dict[str, Any]:
        """For the spec."""
        return {
            "planned_seconds": round(self.planned_seconds, 3),
            "planned_memory": self.planned_memory,
            "seconds": round(self.seconds, 3),
            "peak_memory": self.peak_memory,
            "threads": self.threads,
            **({"workers": self.workers} if self.workers > 1 else {}),
        }


def planned_and_taken(spent: Spent, *, at_most: bool = False) -> str:
    """One line for the end of a sweep.

    Args:
        at_most: the plan assumed that no variant stops early.
    """
    used = "" if spent.peak_memory is None else f" and {quantity(spent.peak_memory, 'B')} at the peak"
    each, by = (" per worker", f" with {spent.workers} workers") if spent.workers > 1 else ("", "")
    bound = "at most " if at_most else ""
    return (
        f"planned: {bound}{duration(spent.planned_seconds)} and {quantity(spent.planned_memory, 'B')}{each}; "
        f"took: {duration(spent.seconds)}{used}{by}"
    )


def memory_used(device: str) -> int | None:
    """Peak memory (bytes) since the process began: of torch's tensors on a GPU, otherwise of the whole process;
    ``None`` if the system does not report it."""
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated(torch.device(device)))
    try:
        import resource
    except ImportError:
        return None
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024
