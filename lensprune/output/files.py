"""Write files atomically: complete or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

from lensprune.errors import UserError

__all__ = ["TEMPORARY_PREFIX", "sync_folder", "write_atomically", "write_error"]

TEMPORARY_PREFIX = ".tmp-"


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_error(error: OSError, path: Path, advice: str = "") -> UserError:
    """A one-line error for a write that the operating system refused."""
    reason = {
        errno.ENOSPC: "the disk is full",
        errno.EDQUOT: "the disk quota is used up",
        errno.EROFS: "the file system is read-only",
        errno.EACCES: "no permission to write there",
        errno.EPERM: "no permission to write there",
    }.get(error.errno or 0, error.strerror or str(error))
    return UserError(f"cannot write {path}: {reason}{'; ' if advice else ''}{advice}")


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, sync it, and rename it to `path`.

    Whatever stops the process, `path` is the old file or the whole new one. A temporary file that a killed
    process leaves over begins with `TEMPORARY_PREFIX`.

    Raises:
        OSError: as the file system gives it; the temporary file is removed first.
    """
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{path.name}"[:200])
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
