"""The files of a run folder: their names and checksums, its spec, and where a run may start."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from lensprune.errors import UserError, nearest
from lensprune.output.files import TEMPORARY_PREFIX
from lensprune.paths import usable_path
from lensprune.runs.records import CellKey
from lensprune.runs.spec import SweepSpec

__all__ = [
    "LOCK_FILE",
    "SPEC_FILE",
    "cell_stem",
    "check_out_folder",
    "questions_stem",
    "read_spec",
    "stem_of",
    "whole_files",
]


SPEC_FILE = "spec.json"
LOCK_FILE = ".lock"
_Key = TypeVar("_Key")


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
    return path.name == LOCK_FILE or path.name.startswith(TEMPORARY_PREFIX)


def _safe(text: str, length: int) -> str:
    return re.sub(r"[^A-Za-z0-9=-]+", "_", text)[:length]


def cell_stem(key: CellKey) -> str:
    """File name of a cell up to its checksum: readable, made of safe characters, and unique to the cell."""
    digest = hashlib.sha256("\0".join(key[:3]).encode("utf-8", "surrogatepass")).hexdigest()[:12]
    stem = f"{_safe(key.task, 40)}.{_safe(key.protocol, 20)}.{_safe(key.variant, 60)}.{digest}"
    return f"{stem}.{key.block}" if key.block else stem


def questions_stem(task: str, protocol: str) -> str:
    """As `cell_stem`, for the questions of one (task, protocol)."""
    digest = hashlib.sha256(f"{task}\0{protocol}".encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f"{_safe(task, 40)}.{_safe(protocol, 20)}.{digest}"


def stem_of(path: Path) -> str:
    """The part of a file's name before its checksum."""
    return path.stem.rpartition(".")[0]


def _file_hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def whole_files(folder: Path, keys: Mapping[str, _Key]) -> tuple[dict[_Key, Path], list[Path]]:
    """The intact Parquet files of `folder` by their key in `keys`, and the files that don't match their name."""
    whole: dict[_Key, Path] = {}
    strangers = []
    for path in sorted(folder.glob("*.parquet")):
        if path.name.startswith(TEMPORARY_PREFIX):
            continue
        key = keys.get(stem_of(path))
        if key is None or key in whole or _file_hash(path) != path.stem.rpartition(".")[2]:
            strangers.append(path)
        else:
            whole[key] = path
    return whole, strangers
