"""Resolve a model's name: a bundled alias, a local folder, a GGUF file or a repository on the hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from lensprune.errors import UserError, nearest, unknown_name
from lensprune.models.sources.bundled import BUNDLED
from lensprune.paths import usable_path

__all__ = ["ModelKind", "display_name", "model_kind"]

ModelKind = Literal["bundled", "folder", "gguf", "hub"]

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def model_kind(name_or_path: str | Path) -> ModelKind:
    """The source that `name_or_path` names.

    Raises:
        UserError: nothing has that name; the message gives the nearest bundled names.
    """
    text = str(name_or_path)
    if isinstance(name_or_path, str) and not text.strip():
        # An empty path would be the current folder.
        raise UserError(f"model {text!r} is empty: give {', '.join(BUNDLED)}, a folder, a .gguf file or a hub id")
    if text in BUNDLED:
        return "bundled"
    path = usable_path(name_or_path, "model")
    if path.is_dir():
        return "folder"
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise UserError(
                f"model file {text} is not a .gguf file: give a .gguf file or a folder in Hugging Face's layout"
            )
        return "gguf"
    if path.suffix.lower() == ".gguf" or path.is_absolute() or text.startswith((".", "~")):
        raise UserError(f"model path {text!r} does not exist{_hint(text)}")
    if _HUB_ID.fullmatch(text):
        return "hub"
    if "/" in text:
        raise UserError(f"model {text!r} is neither a path that exists nor a hub id (owner/name){_hint(text)}")
    raise unknown_name("model", text, BUNDLED)


def _hint(text: str) -> str:
    close = nearest(Path(text).name, BUNDLED)
    return f" (bundled: {', '.join(close or sorted(BUNDLED))})"


def display_name(name_or_path: str | Path) -> str:
    """The name under which a model is recorded: the last part of a path, or the name as given."""
    # A path would put the user's folders into every record; its last part identifies models as well.
    path = Path(name_or_path).expanduser()
    return path.resolve().name if path.exists() and str(name_or_path) not in BUNDLED else str(name_or_path)
