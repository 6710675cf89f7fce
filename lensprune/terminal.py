"""Standard output, standard error and progress bars that keep working when their reader is gone."""

from __future__ import annotations

import codecs
import errno
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["LastingStream", "lasting_streams", "progress_bar"]

_ENCODING_ERRORS = "lensprune-plain"
_PLAIN = {
    "Δ": "d",
    "μ": "u",
    "→": "->",
    "↔": "<->",
    "−": "-",
    "–": "-",
    "—": "-",
    "×": "x",
    "±": "+/-",
    "≤": "<=",
    "≥": ">=",
    "≈": "~",
    "‖": "|",
    "·": "*",
    "…": "...",
}


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_PLAIN.get(c, "?") for c in error.object[error.start : error.end]), error.end


codecs.register_error(_ENCODING_ERRORS, _plain)


class LastingStream:
    """A text stream whose writes never fail.

    Characters that the encoding lacks are replaced (``Δ`` by ``d``, ``→`` by ``->``, others by ``?``). Once the stream
    is gone (its reader left, the disk is full, it was closed), `failure` holds the first error and further output is
    dropped.

    Args:
        redirect: when the stream is gone, redirect its file descriptor to the null device, so that other writers, and
            the flush at interpreter exit, don't fail either.
    """

    def __init__(self, stream: Any, *, redirect: bool = False) -> None:
        self._stream = stream
        self._redirect = redirect
        self.failure: OSError | ValueError | None = None

    def write(self, text: str) -> int:
        """Write `text`; like a text stream's, it returns the number of characters taken."""
        if self._stream is not None and self.failure is None:
            try:
                self._stream.write(text)
            except UnicodeEncodeError:
                encoding = self._stream.encoding
                self.write(text.encode(encoding, _ENCODING_ERRORS).decode(encoding))
            except (OSError, ValueError) as error:
                self._lose(error)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each of `lines`."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush buffered output."""
        if self._stream is not None and self.failure is None:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._lose(error)

    def isatty(self) -> bool:
        """Whether the stream is connected to a terminal."""
        try:
            return self._stream is not None and bool(self._stream.isatty())
        except ValueError:
            return False

    def _lose(self, error: OSError | ValueError) -> None:
        self.failure = error
        if not self._redirect:
            return
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)
        except (OSError, ValueError, AttributeError):
            pass

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def lasting_streams() -> Iterator[tuple[LastingStream, LastingStream]]:
    """Standard output and standard error as `LastingStream`, for everything that writes to them meanwhile."""
    _open_missing_descriptors()
    before = sys.stdout, sys.stderr
    out, err = (LastingStream(stream, redirect=True) for stream in before)
    sys.stdout, sys.stderr = out, err
    try:
        yield out, err
    finally:
        out.flush()
        err.flush()
        sys.stdout, sys.stderr = before


def _open_missing_descriptors() -> None:
    """Open closed standard descriptors on the null device, so that no other file becomes standard output."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError as error:
            if error.errno == errno.EBADF:
                os.open(os.devnull, os.O_RDWR)


def progress_bar(*, shown: bool, total: int | None = None, unit: str = "row", description: str | None = None) -> Any:
    """A tqdm bar on standard error that never stops the work: without a reader, it isn't drawn."""
    from tqdm.auto import tqdm

    stream = sys.stderr if isinstance(sys.stderr, LastingStream) else LastingStream(sys.stderr)
    return tqdm(
        total=total, unit=unit, desc=description, disable=not shown, file=stream, dynamic_ncols=True, smoothing=0.1
    )
