"""Units of cells, so that workers finish together and variants still share a clean forward pass."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Unit", "UnitQueue"]

_SHARE = 2
"""A unit is at most this fraction (1 / _SHARE) of an equal share of what is left."""


def _part(cells: int, parts: int) -> int:
    return max(1, math.ceil(cells / parts))


@dataclass(frozen=True)
class Unit:
    """Cells of one (task, protocol) that a worker measures together; `losses` workers were lost at them. In a sweep
    that stops early, `block` is the block of items."""

    task: str
    protocol: str
    variants: tuple[str, ...]
    losses: int = 0
    block: int = 0


class UnitQueue:
    """The cells that are not distributed yet.

    Each request by a worker gets half of an equal share of the remaining cells, from one (task, protocol): large units
    at first, which seldom rerun the clean model, and small ones at the end, so that workers finish together (guided
    self-scheduling, Polychronopoulos and Kuck, 1987). A unit is never more than the worker's share of that (task,
    protocol): generation can take a hundred times as long as a likelihood, so one group may be most of the work.
    """

    def __init__(
        self, groups: Sequence[tuple[str, str, Sequence[str]]], workers: int, blocks: Sequence[int] | None = None
    ) -> None:
        """`groups`: (task, protocol, names of the variants that are missing); `blocks`: the block of items of each."""
        self._groups = deque(
            (task, protocol, list(names), _part(len(names), workers), block)
            for (task, protocol, names), block in zip(groups, blocks or [0] * len(groups), strict=True)
        )
        self._returned: deque[Unit] = deque()
        self._workers = workers

    @property
    def cells(self) -> int:
        """Number of cells that are not distributed yet."""
        return sum(len(names) for _, _, names, _, _ in self._groups) + sum(
            len(unit.variants) for unit in self._returned
        )

    def next(self) -> Unit | None:
        """The next unit, or ``None`` when nothing is left."""
        if self._returned:
            return self._returned.popleft()
        while self._groups and not self._groups[0][2]:
            self._groups.popleft()
        if not self._groups:
            return None
        task, protocol, names, most, block = self._groups[0]
        size = min(most, _part(self.cells, _SHARE * self._workers))
        taken = tuple(names[:size])
        del names[:size]
        return Unit(task, protocol, taken, block=block)

    def put_back(self, unit: Unit) -> None:
        """Put `unit` back, to be distributed before anything else."""
        self._returned.append(unit)
