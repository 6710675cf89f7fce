"""A run on disk: an append-only folder of finished cells that survives being stopped at any moment."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Protocol, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from lensprune.errors import LensPruneError, UserError, nearest
from lensprune.output.files import TEMPORARY_PREFIX, sync_folder, write_atomically, write_error
from lensprune.paths import usable_path
from lensprune.runs.answers import AnswerLog
from lensprune.runs.questions import questions_from_parquet, questions_hash, questions_to_parquet
from lensprune.runs.records import CellKey
from lensprune.runs.spec import ExecutionSpec, SweepSpec

__all__ = [
    "SPEC_FILE",
    "CellStore",
    "MemoryStore",
    "RunStore",
    "check_out_folder",
    "open_store",
    "read_spec",
    "stopped_message",
]

logger = logging.getLogger("lensprune")

SPEC_FILE = "spec.json"
_LOCK_FILE = ".lock"

Questions = Mapping[tuple[str, str], pa.Table]
"""Question tables by (task, protocol)."""
_Key = TypeVar("_Key")


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

    def keep_execution(self, execution: ExecutionSpec) -> None:
        """Nothing to do: the run's spec has it."""


def read_spec(folder: Path) -> SweepSpec:
    """The spec of the run in `folder`.

    Raises:
        UserError: no such folder, no run in it, or a spec that can't be read.
    """
    path = usable_path(folder, "run folder") / SPEC_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{folder} {_no_run(folder)}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    return SweepSpec.from_json(text, str(path))


def _no_run(folder: Path) -> str:
    """The message for a folder without a run, with the nearest run."""
    if folder.is_dir():
        inner = sorted(path.parent.name for path in folder.glob(f"*/{SPEC_FILE}"))
        hint = f"; its folders {', '.join(inner)} contain runs" if inner else ""
        return f"contains no run: expected a folder with {SPEC_FILE} in it{hint}"
    beside = [path.parent.name for path in folder.parent.glob(f"*/{SPEC_FILE}")] if folder.parent.is_dir() else []
    close = nearest(folder.name, beside)
    hint = f"; did you mean {' or '.join(str(folder.parent / name) for name in close)}?" if close else ""
    return f"is not a run folder: expected a folder with {SPEC_FILE} in it{hint}"


def check_out_folder(folder: Path) -> SweepSpec | None:
    """The spec of the run in `folder`, or ``None`` if a new run may start there. Writes nothing.

    Raises:
        UserError: a file, a folder with other contents, or a place that can't be written to.
    """
    usable_path(folder, "out folder")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"out folder {folder} is a file: choose a new folder")
    if folder.is_dir():
        if (folder / SPEC_FILE).exists():
            return read_spec(folder)
        strangers = sorted(p.name for p in folder.iterdir() if not _may_precede_spec(p))
        if strangers:
            raise UserError(
                f"out folder {folder} is not empty and contains no run (it has {strangers[0]!r}): choose a new folder"
            )
    existing = folder
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise UserError(f"out folder {folder} can't be made: no permission to write in {existing}")
    return None


def _may_precede_spec(path: Path) -> bool:
    """Whether `path` may be left over from a run that was killed before its spec was written."""
    return path.name == _LOCK_FILE or path.name.startswith(TEMPORARY_PREFIX)


def _safe(text: str, length: int) -> str:
    return re.sub(r"[^A-Za-z0-9=-]+", "_", text)[:length]


def _cell_stem(key: CellKey) -> str:
    """File name of a cell up to its checksum: readable, made of safe characters, and unique to the cell."""
    digest = hashlib.sha256("\0".join(key[:3]).encode("utf-8", "surrogatepass")).hexdigest()[:12]
    stem = f"{_safe(key.task, 40)}.{_safe(key.protocol, 20)}.{_safe(key.variant, 60)}.{digest}"
    return f"{stem}.{key.block}" if key.block else stem


def _questions_stem(task: str, protocol: str) -> str:
    """As `_cell_stem`, for the questions of one (task, protocol)."""
    digest = hashlib.sha256(f"{task}\0{protocol}".encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f"{_safe(task, 40)}.{_safe(protocol, 20)}.{digest}"


def _stem_of(path: Path) -> str:
    """The part of a file's name before its checksum."""
    return path.stem.rpartition(".")[0]


def _file_hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _whole_files(folder: Path, keys: Mapping[str, _Key]) -> tuple[dict[_Key, Path], list[Path]]:
    """The intact Parquet files of `folder` by their key in `keys`, and the files that don't match their name."""
    found: dict[_Key, Path] = {}
    strangers = []
    for path in sorted(folder.glob("*.parquet")):
        if path.name.startswith(TEMPORARY_PREFIX):
            continue
        key = keys.get(_stem_of(path))
        if key is None or key in found or _file_hash(path) != path.stem.rpartition(".")[2]:
            strangers.append(path)
        else:
            found[key] = path
    return found, strangers


class RunStore:
    """The run folder of one spec.

    A cell is ``records/TASK.PROTOCOL.VARIANT.ID.CHECKSUM.parquet``, where ID is a hash of the cell's full name and
    CHECKSUM one of the file's bytes: name and contents appear together, in one rename. The questions of a (task,
    protocol), which all its cells share, are ``questions/TASK.PROTOCOL.ID.CHECKSUM.parquet``, written before any cell;
    the spec has their hash. A file that doesn't match its name is moved to ``damaged/`` and counts as missing.
    ``answers/TASK.PROTOCOL.ID.BLOCK.jsonl`` contains answers of unfinished cells, see `AnswerLog`.
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
        asked = [(cell.task, cell.protocol) for cell in store.spec.cells]
        return all(cell in store._question_files and store._fits(store._question_files[cell], *cell) for cell in asked)

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
            lock = FileLock(path / _LOCK_FILE, timeout=0).acquire()
        except Timeout:
            raise UserError(
                f"{path} is being written by another process: wait for it or choose another out folder"
            ) from None
        except OSError as error:
            raise write_error(error, path) from None
        with lock:
            existing = check_out_folder(path)
            if existing is not None:
                difference = existing.first_difference(spec)
                if difference is not None:
                    raise UserError(f"{path} contains another run ({difference}): choose another out folder")
            store = cls(path, spec if existing is None else existing)
            store._begin(is_new=existing is None)
            yield store

    def _begin(self, is_new: bool) -> None:
        try:
            for place in (self.folder, self.records_folder, self.questions_folder):
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
            CellKey(name, cell.task, cell.protocol, block)
            for cell in self.spec.cells
            for block in range(self.spec.n_blocks)
            for name in self.spec.variant_names
        ]

    def _scan_quietly(self) -> list[Path]:
        """Find the stored cells and questions; return the files that are not intact files of this run."""
        asked = {_questions_stem(cell.task, cell.protocol): (cell.task, cell.protocol) for cell in self.spec.cells}
        self._question_files, strangers = _whole_files(self.questions_folder, asked)
        cells = {_cell_stem(key): key for key in self.expected()}
        self._files, others = _whole_files(self.records_folder, cells)
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
        stems = {_cell_stem(key) for key in self.expected()}
        return len({stem for path in self.records_folder.glob("*.parquet") if (stem := _stem_of(path)) in stems})

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
        self._files[key] = self._write_file(self.records_folder, _cell_stem(key), sink.getvalue().to_pybytes())

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
                path = self._write_file(self.questions_folder, _questions_stem(task, protocol), data)
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
            raise UserError(f"{path} holds other questions than those of the run: {again}")
        return table

    def answer_log(self, task: str, protocol: str, block: int = 0) -> AnswerLog:
        return AnswerLog(self.folder / "answers" / f"{_questions_stem(task, protocol)}.{block}.jsonl", self._advice)

    def _questions_hash(self, task: str, protocol: str) -> str | None:
        cells = self.spec.cells
        return next((c.questions_hash for c in cells if (c.task, c.protocol) == (task, protocol)), None)

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
    unfinished = " and answers of unfinished ones" if any(store.folder.glob("answers/*.jsonl")) else ""
    done = f"stopped: {_counted(store.stored(), total)}{unfinished} are stored; resume "
    if by_calling is not None:
        return f"{done}by calling {by_calling} again with the same arguments and out folder"
    return f"{done}with: lensprune resume {store.folder}"
