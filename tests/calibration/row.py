"""One line of the calibration."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Row"]


@dataclass(frozen=True)
class Row:
    """One number of a question, by the method before and by the one that is used; `aim` says what it should be."""

    question: str
    world: str
    number: str
    before: float
    now: float
    aim: str
    runs: int
