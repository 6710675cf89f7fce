"""Sources of rows: local JSON Lines, bundled data, and the Hugging Face hub, with checks."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lensprune.errors import UserError, nearest
from lensprune.offline import is_offline
from lensprune.packaged import data_folder
from lensprune.paths import nearest_path
from lensprune.tasks.base import Doc, RowRequest, Rows

__all__ = ["Dataset", "hub_rows", "read_rows", "require_columns", "sharing"]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read a file with one JSON object per line, or with one JSON array of objects; blank lines and a byte-order mark
    are skipped.

    Raises:
        UserError: the file is missing, unreadable or empty, or a line is not a JSON object (with its number).
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file{nearest_path(path)}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if text.lstrip().startswith("["):
        rows = _parse_array(path, text)
    else:
        lines = text.split("\n")
        rows = [_parse_line(path, number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not rows:
        raise UserError(f"{path}: the file contains no rows")
    return rows


def _parse_array(path: Path, text: str) -> list[dict[str, Any]]:
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        reason = f"{error.msg} at line {error.lineno}, column {error.colno}"
        raise UserError(f"{path}: starts like a JSON array but is not JSON ({reason})") from None
    except (RecursionError, ValueError) as error:
        raise UserError(f"{path}: can't be read ({str(error).partition(':')[0]})") from None
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            kind = type(row).__name__
            raise UserError(f"{path}: element {number} is a JSON {kind}, expected an object with columns")
    return list(rows)


def _parse_line(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: line {number} is not JSON ({error.msg} at column {error.colno})") from None
    except (RecursionError, ValueError) as error:
        # Thousands of brackets or digits: valid JSON that Python does not read.
        raise UserError(f"{path}: line {number} can't be read ({str(error).partition(':')[0]})") from None
    if not isinstance(row, dict):
        raise UserError(f"{path}: line {number} holds a JSON {type(row).__name__}, expected an object with columns")
    return row


def require_columns(rows: Sequence[Doc], columns: Sequence[str], where: str) -> None:
    """Check that every row has every column.

    Raises:
        UserError: a column is missing; the message names the row, the column, and the nearest column that exists.
    """
    for number, row in enumerate(rows, start=1):
        for column in columns:
            if column not in row:
                close = nearest(column, row, n=1)
                hint = f"; the nearest is {close[0]!r}" if close else ""
                raise UserError(f"{where}: row {number} has no column {column!r} (it has {', '.join(row)}{hint})")


def hub_rows(path: str, config: str | None, split: str, missing: str = "") -> list[dict[str, Any]]:
    """Rows of a split of a dataset on the Hugging Face hub; code from the hub is never run.

    Args:
        missing: where the rows were not found before, for the error message.

    Raises:
        UserError: ``LENSPRUNE_OFFLINE`` is set, or the dataset cannot be loaded.
    """
    label = f"{path}{f' ({config})' if config else ''}, split {split!r}"
    if is_offline(hub_counts=False):
        raise UserError(f"{missing}LENSPRUNE_OFFLINE is set, so {label} cannot be fetched: give --data-dir FOLDER")
    # Importing datasets takes a second or more, and local rows don't need it.
    import datasets

    try:
        loaded = datasets.load_dataset(path, config, split=split)
    except (datasets.exceptions.DatasetsError, OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()
        raise UserError(
            f"{missing}{label} cannot be loaded from the hub ({reason[0] if reason else type(error).__name__}): "
            "check the network, or give --data-dir FOLDER"
        ) from error
    rows = [dict(row) for row in loaded]
    if not rows:
        raise UserError(f"{label}: the split contains no rows")
    return rows


def sharing(column: str) -> Callable[[Sequence[Doc]], list[str]]:
    """Twins for `Rows`: rows with the same text in `column` are twins; a row without it has none."""

    def labels(docs: Sequence[Doc]) -> list[str]:
        first: dict[str, int] = {}
        return [
            str(first.setdefault(str(doc[column]), place) if doc.get(column) else place)
            for place, doc in enumerate(docs)
        ]

    return labels


@dataclass(frozen=True)
class Dataset:
    """A dataset in the hub's column schema; used as a task's `load`.

    Rows are taken from ``<data_dir>/<folder>/<split>.jsonl``, else from `files`, else from
    ``<bundled data>/<folder>/<split>.jsonl``, else from the hub. Among local files, the evaluated split is the first of
    `splits` that exists, and the few-shot split the first of `fewshot_splits`; without one, few-shot examples come from
    the evaluated split.

    Args:
        folder: name of the folder below ``--data-dir``.
        columns: columns that every row must have.
        hub: dataset id on the hub, used with `config`; ``None`` for data that is not there.
        splits: evaluated split, in order of preference (the first one is used for the hub).
        fewshot_splits: split of the few-shot examples, in order of preference (the first one is used for the hub).
        process: applied to every row after the columns are checked.
        keep: rows for which it returns false are left out.
        files: one or more files per split, for tasks with files of their own.
        twins: maps the rows, in order, to a label each, equal for near copies; see `Rows`.
    """

    folder: str
    columns: tuple[str, ...]
    hub: str | None = None
    config: str | None = None
    splits: tuple[str, ...] = ("test",)
    fewshot_splits: tuple[str, ...] = ("train",)
    process: Callable[[Doc], Doc] = lambda row: row
    keep: Callable[[Doc], bool] = lambda row: True
    files: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    twins: Callable[[Sequence[Doc]], Sequence[str]] | None = None

    def __call__(self, request: RowRequest) -> Rows:
        """Read the evaluated rows, and the few-shot pool if shots are requested.

        Raises:
            UserError: no source has the rows, or they don't match the description.
        """
        files = self._local_files(request.data_dir)
        reader: Callable[[str], tuple[list[Doc], str]]
        if files:
            split = self._choose(request.split, files)
            shot_split = next((name for name in self.fewshot_splits if name in files), None)
            reader = self._local_reader(files)
        elif self.hub is not None:
            split = request.split or self.splits[0]
            shot_split = self.fewshot_splits[0] if self.fewshot_splits else None
            reader = self._hub_reader(request.data_dir)
        else:
            where = f"in {request.data_dir} or " if request.data_dir else ""
            raise UserError(f"no rows for {self.folder!r} {where}in the bundled data: give --data-dir FOLDER")
        docs, source = reader(split)
        shared = shot_split is None or shot_split == split
        fewshot: list[Doc] = []
        if request.shots:
            fewshot = docs if shot_split is None or shared else reader(shot_split)[0]
        twins = None if self.twins is None else self.twins(docs)
        return Rows(docs, fewshot, source, fewshot_is_evaluated=shared, twins=twins)

    def _local_files(self, data_dir: Path | None) -> Mapping[str, tuple[Path, ...]]:
        if data_dir is not None:
            if not data_dir.is_dir():
                raise UserError(f"data folder {str(data_dir)!r} does not exist")
            if (data_dir / self.folder).is_dir():
                return self._files_in(data_dir / self.folder)
            below = next((path.parent for path in sorted(data_dir.glob(f"*/{self.folder}")) if path.is_dir()), None)
            if below is not None:
                raise UserError(f"{data_dir} has no {self.folder}/, but {below} has: give that as the data folder")
        if self.files:
            return self.files
        bundled = data_folder() / self.folder
        return self._files_in(bundled) if bundled.is_dir() else {}

    def _files_in(self, folder: Path) -> Mapping[str, tuple[Path, ...]]:
        # JSON Lines come last, so that they win if a split has two files.
        files = {path.stem: (path,) for kind in ("json", "jsonl") for path in sorted(folder.glob(f"*.{kind}"))}
        if not files:
            wanted = " or ".join(f"{name}.jsonl" for name in self.splits)
            raise UserError(f"{folder}: expected {wanted}, found no .jsonl file")
        return files

    def _choose(self, split: str | None, files: Mapping[str, tuple[Path, ...]]) -> str:
        for name in self.splits if split is None else (split,):
            if name in files:
                return name
        folder = next(iter(files.values()))[0].parent
        wanted = f"no {split}.jsonl" if split else "expected " + " or ".join(f"{name}.jsonl" for name in self.splits)
        raise UserError(f"{folder}: {wanted}; splits there: {', '.join(sorted(files))}")

    def _local_reader(self, files: Mapping[str, tuple[Path, ...]]) -> Callable[[str], tuple[list[Doc], str]]:
        def read(split: str) -> tuple[list[Doc], str]:
            rows = [row for path in files[split] for row in self._checked(read_rows(path), str(path))]
            return rows, ", ".join(map(str, files[split]))

        return read

    def _hub_reader(self, data_dir: Path | None) -> Callable[[str], tuple[list[Doc], str]]:
        missing = "" if data_dir is None else f"{data_dir} has no {self.folder}/; "

        def read(split: str) -> tuple[list[Doc], str]:
            where = f"hub:{self.hub}{f'/{self.config}' if self.config else ''}:{split}"
            return self._checked(hub_rows(str(self.hub), self.config, split, missing), where), where

        return read

    def _checked(self, rows: Sequence[Mapping[str, Any]], where: str) -> list[Doc]:
        require_columns(rows, self.columns, where)
        kept = [self.process(row) for row in rows if self.keep(row)]
        if not kept:
            raise UserError(f"{where}: none of its {len(rows)} rows belong to this task")
        return kept
