"""Paths and files of text as users name them."""

from __future__ import annotations

from pathlib import Path

from lensprune.errors import UserError, first_line

__all__ = ["read_texts", "usable_path"]

_SHOWN = 60


def usable_path(given: str | Path, what: str) -> Path:
    """`given` with ``~`` resolved, as a path that the system can look up; it need not exist.

    Args:
        what: for the message, like ``data folder``.

    Raises:
        UserError: a NUL character, a name that is too long, a home that is not known, or a folder that may not be read.
    """
    text = str(given)
    shown = repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…")
    if "\0" in text:
        raise UserError(f"{what} {shown} holds a NUL character, which no path can")
    try:
        path = Path(given).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"{what} {shown} is not a usable path: {reason}") from None
    return path


def read_texts(path: Path) -> list[str]:
    """Texts of a UTF-8 file, parted by blank lines.

    Raises:
        UserError: the file cannot be read or holds no text.
    """
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
        raise UserError(f"cannot read {path}: {reason}") from None
    texts = [text.strip() for text in content.split("\n\n") if text.strip()]
    if not texts:
        raise UserError(f"{path} holds no text")
    return texts
