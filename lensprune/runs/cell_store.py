"""Where finished cells are kept: the interface, and a run that is only in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import pyarrow as pa

from lensprune.runs.answers import AnswerLog
from lensprune.runs.records import CellKey
from lensprune.runs.spec import ExecutionSpec

__all__ = ["CellStore", "MemoryStore", "Questions"]


Questions = Mapping[tuple[str, str], pa.Table]
"""Question tables by (task, protocol)."""


class CellStore(Protocol):
    """Storage of finished cells."""

    def finished(self) -> set[CellKey]:
        """Cells that are stored completely."""
        ...

    def write(self, key: CellKey, table: pa.Table) -> None:
        """Store a finished cell; a cell is stored once."""
        ...

    def read(self, key: CellKey, columns: Sequence[str] | None = None) -> pa.Table:
        """The records of a finished cell, all columns or some."""
        ...

    def keep_questions(self, questions: Questions) -> None:
        """Store the questions of the run, which come before any cell."""
        ...

    def questions(self, task: str, protocol: str) -> pa.Table:
        """The questions of one (task, protocol), in the order of its records."""
        ...

    def answer_log(self, task: str, protocol: str, block: int = 0) -> AbstractContextManager[AnswerLog | None]:
        """The log for answers of unfinished cells of one (task, protocol), if they are kept."""
        ...

    def forget_answers(self, task: str, protocol: str) -> None:
        """Remove what is left of answers, once all cells of one (task, protocol) are stored."""
        ...

    def keep_execution(self, execution: ExecutionSpec) -> None:
        """Replace how the run was executed, which no number depends on."""
        ...


class MemoryStore:
    """Cells of a run that is only in memory."""

    def __init__(self) -> None:
        self._cells: dict[CellKey, pa.Table] = {}
        self._questions: dict[tuple[str, str], pa.Table] = {}

    def finished(self) -> set[CellKey]:
        return set(self._cells)

    def write(self, key: CellKey, table: pa.Table) -> None:
        self._cells[key] = table

    def read(self, key: CellKey, columns: Sequence[str] | None = None) -> pa.Table:
        table = self._cells[key]
        return table if columns is None else table.select(list(columns))

    def keep_questions(self, questions: Questions) -> None:
        self._questions.update(questions)

    def questions(self, task: str, protocol: str) -> pa.Table:
        return self._questions[task, protocol]

    def answer_log(self, task: str, protocol: str, block: int = 0) -> AbstractContextManager[None]:
        return nullcontext()

    def forget_answers(self, task: str, protocol: str) -> None:
        """Nothing to do: none are kept."""

    def keep_execution(self, execution: ExecutionSpec) -> None:
        """Nothing to do: the run's spec has it."""
