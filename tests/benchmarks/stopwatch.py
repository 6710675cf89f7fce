"""Time on the wall and on the processors."""

from __future__ import annotations

from time import perf_counter, process_time
from typing import NamedTuple

__all__ = ["Stopwatch", "Times"]


class Times(NamedTuple):
    """Seconds. `cpu` adds up all threads, and hardly depends on what else the machine does."""

    wall: float
    cpu: float


class Stopwatch:
    """Runs from its construction."""

    def __init__(self) -> None:
        self._begin = Times(perf_counter(), process_time())

    def read(self) -> Times:
        return Times(perf_counter() - self._begin.wall, process_time() - self._begin.cpu)
