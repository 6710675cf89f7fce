"""What a sweep would cost, as data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from lensprune.costs.cost import Cost
from lensprune.costs.history import Correction
from lensprune.costs.memory import Memory
from lensprune.costs.shape import ModelShape
from lensprune.costs.speed import Speed
from lensprune.engine.registry import executor_info

__all__ = ["Plan", "PlannedCondition", "PlannedLength", "PlannedStop"]


@dataclass(frozen=True)
class PlannedCondition:
    """One (task, protocol): its size, and its cost in all variants without and with sharing."""

    task: str
    protocol: str
    items: int
    requests: int
    unshared: Cost
    shared: Cost


@dataclass(frozen=True)
class PlannedLength:
    """The same sweep with `new_tokens` per text at most: positions through the model, bytes of keys and values of the
    longest text, texts decoded at once, the peak of memory, and time."""

    new_tokens: int
    tokens: float
    row_bytes: int
    rows: int
    memory: int
    seconds: float


@dataclass(frozen=True)
class PlannedStop:
    """One (task, protocol) of a sweep that stops early, as simulated: how many variants are `measured` on each block of
    items (up to `items`), the cost of that, and the losses that are `assumed`."""

    task: str
    protocol: str
    items: tuple[int, ...]
    measured: tuple[float, ...]
    cost: Cost
    assumed: str


@dataclass(frozen=True)
class Plan:
    """What a sweep would cost; printing it prints `text`.

    `unshared` is the cost of the hooked executor, `shared` that of the forked one; `memory` (bytes) and `seconds` are
    those of `executor`. Generations count at their full length; `lengths` has shorter ones, if they may be long. For
    a sweep that stops early all this is an upper bound; `stops` and `expected_seconds` come from a simulation.

    Examples:
        >>> plan = lp.plan("toy-distilled", "facts", "continuation", limit=2, flops=1e12, bandwidth=1e11)
        >>> plan.n_variants, plan.n_cells, plan.shared.flops < plan.unshared.flops
        (5, 5, True)
    """

    model: str
    shape: ModelShape
    dtype: str
    device: str
    executor: str
    n_variants: int
    conditions: tuple[PlannedCondition, ...]
    reference: Cost
    memory: Memory
    speed: Speed
    seconds: float
    workers: int | None = None
    """Number of workers of a distributed sweep; every other figure is for one process."""
    lengths: tuple[PlannedLength, ...] = ()
    correction: Correction = field(default_factory=Correction)
    """Measured over planned time of earlier sweeps on this machine; `seconds` and `lengths` include it."""
    stops: tuple[PlannedStop, ...] = ()
    expected_seconds: float | None = None
    text: str = field(default="", repr=False, compare=False)
    """What `lensprune plan` prints."""

    @property
    def n_cells(self) -> int:
        return len(self.conditions) * self.n_variants

    @property
    def unshared(self) -> Cost:
        return sum((condition.unshared for condition in self.conditions), Cost()) + self.reference

    @property
    def shared(self) -> Cost:
        return sum((condition.shared for condition in self.conditions), Cost()) + self.reference

    @property
    def cost(self) -> Cost:
        """What `executor` runs."""
        return self.shared if executor_info(self.executor).shares_work else self.unshared

    def table(self) -> pd.DataFrame:
        """One row per (task, protocol): items, requests, tokens and FLOPs of all variants under either executor. Each
        row also has the number of variants, and the time (s) and peak of memory (bytes) of the whole sweep."""
        sweep = {
            "variants": self.n_variants,
            "executor": self.executor,
            "sweep_seconds": self.seconds,
            "sweep_memory": self.memory.total,
        }
        rows = []
        for condition in self.conditions:
            row: dict[str, Any] = {"task": condition.task, "protocol": condition.protocol}
            row |= {"items": condition.items, "requests": condition.requests}
            for name, cost in (("hooked", condition.unshared), ("forked", condition.shared)):
                row |= {f"tokens_{name}": cost.tokens, f"flops_{name}": cost.flops}
            rows.append(row | sweep)
        return pd.DataFrame(rows)

    def __str__(self) -> str:
        return self.text
