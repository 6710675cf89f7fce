"""The outcomes of a run, in memory or on disk, finished or not: what analyses, figures and pages read."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from functools import wraps
from pathlib import Path
from typing import Self, TypeVar
from weakref import WeakKeyDictionary

import pandas as pd
import pyarrow as pa

from lensprune.ablation.variants import CLEAN
from lensprune.errors import LensPruneError, UserError, unknown_name
from lensprune.runs.cell_store import CellStore
from lensprune.runs.chance import CHANCE_COLUMNS, cell_at_chance
from lensprune.runs.questions import QUESTIONS
from lensprune.runs.records import SCHEMA, CellKey
from lensprune.runs.spec import SweepSpec
from lensprune.runs.store import RunStore
from lensprune.tasks.loading import find_task

__all__ = ["Outcomes", "as_lists", "computed_once"]


def as_lists(values: pd.Series) -> pd.Series:
    """Lists instead of the arrays in `values`."""
    return pd.Series([None if v is None else list(v) for v in values], index=values.index, dtype=object)


class Outcomes:
    """The spec of a run and its stored cells. It knows no analysis, figure or page; those are functions of it."""

    def __init__(self, spec: SweepSpec, store: CellStore, folder: Path | None = None) -> None:
        self.spec = spec
        self.folder = folder
        self._store = store
        self._shared: dict[tuple[str, str], tuple[int, int]] = {}

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """The run in `folder`, finished or not.

        Raises:
            UserError: no run there, or a damaged record file.
        """
        store = RunStore.open(folder)
        return cls(store.spec, store, Path(folder))

    @property
    def conditions(self) -> list[tuple[str, str]]:
        """(task, protocol) pairs."""
        return [(condition.task, condition.protocol) for condition in self.spec.conditions]

    def samples(self, task: str, protocol: str) -> int:
        """Number of records per item in the cells of one (task, protocol)."""
        return next(c.samples for c in self.spec.conditions if (c.task, c.protocol) == (task, protocol))

    @property
    def n_finished(self) -> int:
        """How many cells (variant, task, protocol) are stored; with planned looks, those with at least one block."""
        return sum(not key.block for key in self._store.finished())

    @property
    def n_stored(self) -> int:
        """How many blocks of cells are stored; without planned looks, each cell is one block."""
        return len(self._store.finished())

    @property
    def n_expected(self) -> int:
        """How many cells (variant, task, protocol) the spec has."""
        return len(self.spec.conditions) * len(self.spec.variants)

    def task_named(self, name: str) -> str:
        """The name of a task in this run's records.

        `name` may give default parameters, or parameters in another order, and a YAML file stands for its task, as in
        `sweep`.

        Raises:
            UserError: a name that is not part of this run.
        """
        names = [task.name for task in self.spec.tasks]
        if name in names:
            return name
        try:
            known = find_task(str(name)).name
        except UserError:
            known = name
        if known not in names:
            raise unknown_name("task of this run", str(name), names)
        return known

    def select(self, task: str | None = None, protocol: str | None = None) -> list[tuple[str, str]]:
        """The (task, protocol) pairs of one task, one protocol, both, or all.

        Raises:
            UserError: a name that is not part of this run.
        """
        task = None if task is None else self.task_named(task)
        if protocol is not None and protocol not in self.spec.protocols:
            raise unknown_name("protocol of this run", protocol, self.spec.protocols)
        return [(t, p) for t, p in self.conditions if task in (None, t) and protocol in (None, p)]

    def ranked(self, task: str | None = None, protocol: str | None = None) -> list[tuple[str, str]]:
        """The (task, protocol) pairs of `select` on which the clean model is known to beat chance.

        Raises:
            UserError: a name that is not part of this run.
        """
        return [condition for condition in self.select(task, protocol) if self._beats_chance(*condition)]

    def _beats_chance(self, task: str, protocol: str) -> bool:
        key = CellKey(CLEAN.name, task, protocol)
        if key not in self._store.finished():
            return False
        return not cell_at_chance(self.cell(key, list(CHANCE_COLUMNS), whole=True))

    def finished(self, task: str | None = None, protocol: str | None = None) -> list[CellKey]:
        """Cells (variant, task, protocol) that are measured, by task and protocol and then in the spec's order."""
        stored = self._store.finished()
        keys = (CellKey(v, *condition) for condition in self.select(task, protocol) for v in self.spec.variant_names)
        return [key for key in keys if key in stored]

    def is_stored(self, key: CellKey) -> bool:
        """Whether this cell, or block of one, is measured."""
        return key in self._store.finished()

    def cell(self, key: CellKey, columns: Sequence[str] | None = None, *, whole: bool = False) -> pa.Table:
        """Records of one finished cell, in the order of its items; all columns or some.

        Args:
            whole: of a sweep that stops early, all items that this variant was measured on; else those that all
                variants of this task and protocol were, so that they can be compared item by item.
        """
        if self.spec.n_blocks == 1:
            return self._store.read(key, columns)
        n = self._blocks(key, self._store.finished()) if whole else self._shared_blocks(key)
        return pa.concat_tables([self._store.read(key._replace(block=block), columns) for block in range(n)])

    def _blocks(self, key: CellKey, stored: Set[CellKey]) -> int:
        return next(b for b in range(self.spec.n_blocks + 1) if key._replace(block=b) not in stored)

    def _shared_blocks(self, key: CellKey) -> int:
        """Blocks that all cells of the same task and protocol have of which any is stored."""
        stored, condition = self._store.finished(), (key.task, key.protocol)
        known = self._shared.get(condition)
        if known is None or known[0] != len(stored):
            mine = (
                stored_key
                for stored_key in stored
                if not stored_key.block and (stored_key.task, stored_key.protocol) == condition
            )
            known = self._shared[condition] = len(stored), min(self._blocks(stored_key, stored) for stored_key in mine)
        return known[1]

    def questions(self, task: str, protocol: str) -> pa.Table:
        """The questions of one (task, protocol), in the order of its records; columns of `lensprune.runs.questions`.

        Raises:
            UserError: the run folder lacks them.
        """
        return self._store.questions(self.task_named(task), protocol)

    def records(
        self,
        variant: str | None = None,
        task: str | None = None,
        protocol: str | None = None,
        *,
        prompts: bool = False,
    ) -> pd.DataFrame:
        """One row per item and sample, for all cells or the given ones.

        Args:
            prompts: add the questions: ``prompt``, ``options``, ``reference`` (the right answers) and the other fields
                of `lensprune.runs.questions.Question`. Rows of the same question share its texts in memory.

        Raises:
            UserError: a name that is not part of this run.
        """
        if variant is not None and variant not in self.spec.variant_names:
            raise unknown_name("variant", variant, self.spec.variant_names)
        keys = [key for key in self.finished(task, protocol) if variant in (None, key.variant)]
        tables = [self.cell(key, whole=True) for key in keys]
        frame = pa.concat_tables(tables).to_pandas() if tables else SCHEMA.empty_table().to_pandas()
        frame["metrics"] = [dict(pairs) for pairs in frame["metrics"]]
        frame["option_logprobs"] = as_lists(frame["option_logprobs"])
        if prompts:
            self._add_questions(frame, keys, [table.num_rows for table in tables])
        return frame.astype({"layer": "Int64", "head": "Int64"})

    def _add_questions(self, frame: pd.DataFrame, keys: Sequence[CellKey], sizes: Sequence[int]) -> None:
        places = dict.fromkeys((key.task, key.protocol) for key in keys)
        questions = {place: self._store.questions(*place).to_pydict() for place in places}
        for name in QUESTIONS.names:
            values = [
                value
                for key, n in zip(keys, sizes, strict=True)
                for value in questions[key.task, key.protocol][name][: n // self.samples(key.task, key.protocol)]
                for _ in range(self.samples(key.task, key.protocol))
            ]
            if name != "item_id":
                frame[name] = pd.Series(values, dtype="Int64" if name == "gold" else object)
            elif values != frame[name].tolist():
                raise LensPruneError("records and questions are not in the same order")

    def copy_to(self, folder: Path) -> None:
        """Write the spec and the finished cells to `folder`, except for cells that it already has.

        Raises:
            UserError: the folder contains another run, or can't be written to.
        """
        with RunStore.writing(folder, self.spec) as store:
            places = dict.fromkeys((key.task, key.protocol) for key in self.finished())
            store.keep_questions({place: self._store.questions(*place) for place in places})
            for key in sorted(self._store.finished() - store.finished()):
                store.write(key, self._store.read(key))


_Data = TypeVar("_Data", bound=Outcomes)


def computed_once(function: Callable[[_Data], pd.DataFrame]) -> Callable[[_Data], pd.DataFrame]:
    """Compute a table once per `Outcomes`, and again only after more cells were stored.

    A stored cell never changes, so the number of stored cells shows whether anything is new.
    """
    kept: WeakKeyDictionary[_Data, tuple[int, pd.DataFrame]] = WeakKeyDictionary()

    @wraps(function)
    def once(outcomes: _Data) -> pd.DataFrame:
        known = kept.get(outcomes)
        if known is None or known[0] != outcomes.n_stored:
            known = kept[outcomes] = (outcomes.n_stored, function(outcomes))
        return known[1].copy()

    return once
