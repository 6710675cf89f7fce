"""A run on disk: an append-only folder of finished cells that survives being stopped at any moment."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from lensprune.errors import LensPruneError, UserError
from lensprune.output.files import TEMPORARY_PREFIX, sync_folder, write_atomically, write_error
from lensprune.runs.answers import AnswerLog, remove_answers
from lensprune.runs.cell_store import CellStore, MemoryStore, Questions
from lensprune.runs.folder import (
    LOCK_FILE,
    SPEC_FILE,
    cell_stem,
    check_out_folder,
    questions_stem,
    read_spec,
    stem_of,
    whole_files,
)
from lensprune.runs.questions import questions_from_parquet, questions_hash, questions_to_parquet
from lensprune.runs.records import CellKey
from lensprune.runs.spec import ExecutionSpec, SweepSpec
from lensprune.runs.spec_difference import first_difference

__all__ = ["RunStore", "open_store", "stopped_message"]


logger = logging.getLogger("lensprune")


class RunStore:
    """The run folder of one spec.

    A cell is ``records/TASK.PROTOCOL.VARIANT.ID.CHECKSUM.parquet``, where ID is a hash of the cell's full name and
    CHECKSUM one of the file's bytes: name and contents appear together, in one rename. The questions of a (task,
    protocol), which all its cells share, are ``questions/TASK.PROTOCOL.ID.CHECKSUM.parquet``, written before any cell;
    the spec has their hash. A file that doesn't match its name is moved to ``damaged/`` and counts as missing.
    ``answers/TASK.PROTOCOL.ID.BLOCK.jsonl`` contains answers of unfinished cells, see `AnswerLog`, and ``….decoding``
    texts that are being written, see `lensprune.engine.decoding.Checkpoint`.
    """

    def __init__(self, folder: Path, spec: SweepSpec) -> None:
        self.folder = folder
        self.spec = spec
        self.set_aside: list[str] = []
        """Damaged files that were moved, newest last."""
        self._files: dict[CellKey, Path] = {}
        self._question_files: dict[tuple[str, str], Path] = {}
        self._may_set_aside = False

    @property
    def records_folder(self) -> Path:
        return self.folder / "records"

    @property
    def questions_folder(self) -> Path:
        return self.folder / "questions"

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> RunStore:
        """Open an existing run for reading.

        Raises:
            UserError: no run there, or a file of records or questions is damaged.
        """
        path = Path(folder)
        store = cls(path, read_spec(path))
        store._scan()
        return store

    @classmethod
    def is_complete(cls, folder: str | os.PathLike[str]) -> bool:
        """Whether every cell of the run and all its questions are stored and intact."""
        path = Path(folder)
        store = cls(path, read_spec(path))
        if store._scan_quietly() or store.finished() != set(store.expected()):
            return False
        places = [(condition.task, condition.protocol) for condition in store.spec.conditions]
        return all(p in store._question_files and store._fits(store._question_files[p], *p) for p in places)

    @classmethod
    @contextmanager
    def writing(cls, folder: str | os.PathLike[str], spec: SweepSpec) -> Iterator[RunStore]:
        """Start the run of `spec` in `folder`, or resume it; other processes can't write there meanwhile.

        Raises:
            UserError: the folder contains another run, is in use, or can't be written to.
        """
        path = Path(folder)
        check_out_folder(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path / LOCK_FILE, timeout=0).acquire()
        except Timeout:
            raise UserError(
                f"{path} is being written by another process: wait for it or choose another out folder"
            ) from None
        except OSError as error:
            raise write_error(error, path) from None
        with lock:
            existing = check_out_folder(path)
            if existing is not None:
                difference = first_difference(existing, spec)
                if difference is not None:
                    raise UserError(f"{path} contains another run ({difference}): choose another out folder")
            store = cls(path, spec if existing is None else existing)
            store._begin(is_new=existing is None)
            yield store

    def _begin(self, is_new: bool) -> None:
        try:
            for place in (self.folder, self.records_folder, self.questions_folder, self.folder / "answers"):
                for leftover in place.glob(f"{TEMPORARY_PREFIX}*"):
                    leftover.unlink()
            if is_new:
                self._write_spec()
                sync_folder(self.folder.parent)
            # Only now: before the spec exists, anything else in the folder means that it is not a run folder.
            self.records_folder.mkdir(exist_ok=True)
            self.questions_folder.mkdir(exist_ok=True)
            sync_folder(self.folder)
        except OSError as error:
            raise write_error(error, self.folder) from None
        self._may_set_aside = True
        self._scan()

    def _write_spec(self) -> None:
        text = self.spec.to_json()
        write_atomically(self.folder / SPEC_FILE, lambda temporary: temporary.write_text(text, encoding="utf-8"))

    def keep_execution(self, execution: ExecutionSpec) -> None:
        """Write the spec again with another `execution`, in one step.

        Raises:
            UserError: the disk is full or the folder can't be written to; the spec stays as it was.
        """
        self.spec = replace(self.spec, execution=execution)
        try:
            self._write_spec()
        except OSError as error:
            raise write_error(error, self.folder, self._advice()) from None

    def expected(self) -> list[CellKey]:
        """Every cell of the spec, by task and protocol, then block, then variant."""
        return [
            CellKey(name, condition.task, condition.protocol, block)
            for condition in self.spec.conditions
            for block in range(self.spec.n_blocks)
            for name in self.spec.variant_names
        ]

    def _scan_quietly(self) -> list[Path]:
        """Find the stored cells and questions; return the files that are not intact files of this run."""
        stems = {questions_stem(c.task, c.protocol): (c.task, c.protocol) for c in self.spec.conditions}
        self._question_files, strangers = whole_files(self.questions_folder, stems)
        cells = {cell_stem(key): key for key in self.expected()}
        self._files, others = whole_files(self.records_folder, cells)
        return strangers + others

    def _scan(self) -> None:
        for path in self._scan_quietly():
            self._put_aside(path)

    def _put_aside(self, path: Path) -> None:
        if not self._may_set_aside:
            raise UserError(
                f"{path} is damaged (its checksum does not match): lensprune resume {self.folder} computes it again"
            )
        aside = self.folder / "damaged"
        try:
            aside.mkdir(exist_ok=True)
            number = len(list(aside.iterdir()))
            # A rename would replace a file of the same name, if files were removed from the folder meanwhile.
            while (aside / f"{number}-{path.name}").exists():
                number += 1
            path.rename(aside / f"{number}-{path.name}")
            sync_folder(aside)
        except OSError as error:
            raise write_error(error, aside) from None
        self.set_aside.append(path.name)

    def finished(self) -> set[CellKey]:
        return set(self._files)

    def stored(self) -> int:
        """Number of cells in the folder, including one whose writing was interrupted after its file was in place."""
        stems = {cell_stem(key) for key in self.expected()}
        return len({stem for path in self.records_folder.glob("*.parquet") if (stem := stem_of(path)) in stems})

    def write(self, key: CellKey, table: pa.Table) -> None:
        """Store a finished cell under its checksum.

        Raises:
            UserError: the disk is full or the folder can't be written to; stored cells stay whole.
            ValueError: the cell is stored already.
        """
        if key in self._files:
            raise ValueError(f"cell {key} is stored already")
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        self._files[key] = self._write_file(self.records_folder, cell_stem(key), sink.getvalue().to_pybytes())

    def _write_file(self, folder: Path, stem: str, data: bytes) -> Path:
        path = folder / f"{stem}.{hashlib.sha256(data).hexdigest()[:16]}.parquet"
        try:
            write_atomically(path, lambda temporary: temporary.write_bytes(data))
        except OSError as error:
            raise write_error(error, path.parent, self._advice()) from None
        return path

    def _advice(self) -> str:
        total = len(self.expected()) if self.spec.stopping is None else None
        return f"{_counted(len(self._files), total)} are stored, continue with: lensprune resume {self.folder}"

    def keep_questions(self, questions: Questions) -> None:
        """Store the questions that are not stored yet; a stored file that does not match the spec is moved aside.

        Raises:
            UserError: as `write`.
            LensPruneError: `questions` are not those of the spec.
        """
        for (task, protocol), table in questions.items():
            if questions_hash(table) != self._questions_hash(task, protocol):
                raise LensPruneError(f"the questions of {task} under {protocol} are not those of the run's spec")
            stored = self._question_files.get((task, protocol))
            if stored is not None and not self._fits(stored, task, protocol):
                self._put_aside(stored)
                stored = None
            if stored is None:
                data = questions_to_parquet(table)
                path = self._write_file(self.questions_folder, questions_stem(task, protocol), data)
                self._question_files[task, protocol] = path

    def questions(self, task: str, protocol: str) -> pa.Table:
        """The questions of one (task, protocol), in the order of its records.

        Raises:
            UserError: they are not stored, or are not those of the spec.
        """
        path = self._question_files.get((task, protocol))
        again = f"lensprune resume {self.folder} writes them again"
        if path is None:
            raise UserError(f"{self.folder} lacks the questions of {task} under {protocol}: {again}")
        table = questions_from_parquet(path.read_bytes())
        if questions_hash(table) != self._questions_hash(task, protocol):
            raise UserError(f"{path} contains questions other than the run's: {again}")
        return table

    def answer_log(self, task: str, protocol: str, block: int = 0) -> AnswerLog:
        return AnswerLog(self.folder / "answers" / f"{questions_stem(task, protocol)}.{block}.jsonl", self._advice)

    def forget_answers(self, task: str, protocol: str) -> None:
        remove_answers(self.folder, f"{questions_stem(task, protocol)}.")

    def _questions_hash(self, task: str, protocol: str) -> str | None:
        conditions = self.spec.conditions
        return next((c.questions_hash for c in conditions if (c.task, c.protocol) == (task, protocol)), None)

    def _fits(self, path: Path, task: str, protocol: str) -> bool:
        """Whether the questions in `path` are those of the spec."""
        return questions_hash(questions_from_parquet(path.read_bytes())) == self._questions_hash(task, protocol)

    def read(self, key: CellKey, columns: Sequence[str] | None = None) -> pa.Table:
        return pq.read_table(self._files[key], columns=None if columns is None else list(columns), partitioning=None)

    def written_at(self, key: CellKey) -> float:
        """When a finished cell was stored, in seconds since the epoch, by the clock of its file system."""
        return self._files[key].stat().st_mtime


@contextmanager
def open_store(folder: Path | None, spec: SweepSpec, questions: Questions) -> Iterator[CellStore]:
    """Where a sweep stores its cells: in memory, or in `folder`, with a warning for every damaged file found there.

    Args:
        questions: those of `spec`, which are stored first.

    Raises:
        UserError: as `RunStore.writing`.
    """
    if folder is None:
        memory = MemoryStore()
        memory.keep_questions(questions)
        yield memory
        return
    with RunStore.writing(folder, spec) as store:
        store.keep_questions(questions)
        for name in store.set_aside:
            logger.warning("%s was damaged: it is set aside in %s and computed again", name, folder / "damaged")
        yield store


def _counted(stored: int, total: int | None) -> str:
    return f"{stored} blocks of cells" if total is None else f"{stored} of {total} cells"


def stopped_message(store: CellStore, total: int | None, by_calling: str | None = None) -> str:
    """The message after a stop: how many of `total` cells are stored, and how to resume.

    Args:
        total: ``None`` in a sweep that stops early: how many blocks of cells it will take is not known.
        by_calling: what to call again with the same arguments, where ``lensprune resume`` can't rebuild it.
    """
    if not isinstance(store, RunStore):
        return "stopped; nothing is stored, because the run has no out folder"
    unfinished = " and answers of unfinished ones" if any(store.folder.glob("answers/[!.]*")) else ""
    done = f"stopped: {_counted(store.stored(), total)}{unfinished} are stored; resume "
    if by_calling is not None:
        return f"{done}by calling {by_calling} again with the same arguments and out folder"
    return f"{done}with: lensprune resume {store.folder}"
