"""Paths and text files given by users."""

from __future__ import annotations

from pathlib import Path

from lensprune.errors import UserError, first_line, nearest

__all__ = ["nearest_path", "read_texts", "usable_path"]

_SHOWN = 60


def usable_path(given: str | Path, what: str) -> Path:
    """Resolve ``~`` in `given` and check that the path can be looked up; it need not exist.

    Args:
        what: what the path is, for the message, like ``data folder``.

    Raises:
        UserError: a NUL character, a name that is too long, an unknown home, or a folder without read permission.
    """
    text = str(given)
    shown = repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…")
    if "\0" in text:
        raise UserError(f"{what} {shown} contains a NUL character, which is not allowed in a path")
    try:
        path = Path(given).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"{what} {shown} is not a usable path: {reason}") from None
    return path


def nearest_path(path: Path) -> str:
    """What to add to the message that `path` does not exist: the names beside it that are spelled most like it, or
    nothing."""
    try:
        close = nearest(path.name, [other.name for other in path.parent.iterdir()])
    except OSError:
        return ""
    return f"; did you mean {' or '.join(str(path.parent / name) for name in close)}?" if close else ""


def read_texts(path: Path) -> list[str]:
    """Texts of a UTF-8 file, separated by blank lines.

    Raises:
        UserError: the file cannot be read or contains no text.
    """
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
        hint = nearest_path(path) if isinstance(error, FileNotFoundError) else ""
        raise UserError(f"cannot read {path}: {reason}{hint}") from None
    texts = [text.strip() for text in content.split("\n\n") if text.strip()]
    if not texts:
        raise UserError(f"{path} contains no text")
    return texts
