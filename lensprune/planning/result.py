"""What a sweep would cost, as data."""

from __future__ import annotations

from dataclasses import dataclass, field

from lensprune.engine.registry import executor_info
from lensprune.planning.cost import Cost
from lensprune.planning.memory import Memory
from lensprune.planning.shape import ModelShape
from lensprune.planning.speed import Speed

__all__ = ["Plan", "PlannedCell", "PlannedLength"]


@dataclass(frozen=True)
class PlannedCell:
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
class Plan:
    """What a sweep would cost.

    `unshared` is the hooked executor's way, `shared` the forked one's; `memory` and `seconds` are those of
    `executor`. Generations count with all the new tokens that they may take; `lengths` has fewer, where they may take
    many.
    """

    model: str
    shape: ModelShape
    dtype: str
    device: str
    executor: str
    n_variants: int
    cells: tuple[PlannedCell, ...]
    reference: Cost
    memory: Memory
    speed: Speed
    seconds: float
    workers: int | None = None
    """Of a sweep that is spread; every other figure is that of one process."""
    lengths: tuple[PlannedLength, ...] = ()
    text: str = field(default="", repr=False, compare=False)
    """What `lensprune plan` prints."""

    @property
    def n_cells(self) -> int:
        return len(self.cells) * self.n_variants

    @property
    def unshared(self) -> Cost:
        return sum((cell.unshared for cell in self.cells), Cost()) + self.reference

    @property
    def shared(self) -> Cost:
        return sum((cell.shared for cell in self.cells), Cost()) + self.reference

    @property
    def cost(self) -> Cost:
        """What `executor` runs."""
        return self.shared if executor_info(self.executor).shares_work else self.unshared

    def __str__(self) -> str:
        return self.text
