"""The cache of converted models: written atomically, and verified on every load."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import platformdirs

from lensprune.errors import UserError

__all__ = ["cache_root", "hash_file", "read_manifest", "store", "verify"]

MANIFEST = "lensprune-manifest.json"


def cache_root() -> Path:
    """``LENSPRUNE_CACHE``, or the platform's cache folder for lensprune."""
    named = os.environ.get("LENSPRUNE_CACHE")
    return Path(named) if named else Path(platformdirs.user_cache_dir("lensprune", appauthor=False))


def hash_file(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def store(folder: Path, write: Callable[[Path], dict[str, Any]]) -> None:
    """Fill `folder` by `write(temporary_folder)` and move it into place in one step.

    `write` returns facts for the manifest, which also lists the sha256 of every file. If another process finishes
    first, its folder is kept and this one's is dropped.

    Raises:
        UserError: the cache folder cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise UserError(
            f"cannot write the cache folder {folder.parent}: {error.strerror}; set LENSPRUNE_CACHE"
        ) from error
    try:
        facts = write(temporary)
        files = {
            path.relative_to(temporary).as_posix(): hash_file(path)
            for path in sorted(temporary.rglob("*"))
            if path.is_file()
        }
        (temporary / MANIFEST).write_text(json.dumps({**facts, "files": files}, indent=2) + "\n")
        try:
            os.replace(temporary, folder)
        except OSError:
            # A non-empty folder is never replaced: another process was first.
            if not (folder / MANIFEST).is_file():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a stored folder, or ``None`` if it is missing or unreadable."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (OSError, json.JSONDecodeError):
        return None
    return manifest if isinstance(manifest, dict) and isinstance(manifest.get("files"), dict) else None


def verify(folder: Path, manifest: dict[str, Any]) -> list[str]:
    """Names of files that are missing or differ from the manifest."""
    return [
        name
        for name, digest in manifest["files"].items()
        if not (folder / name).is_file() or hash_file(folder / name) != digest
    ]
