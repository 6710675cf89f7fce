"""Standard output, standard error and progress bars that keep working when their reader is gone."""

from __future__ import annotations

import codecs
import errno
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["LastingStream", "TimeLeft", "WorkBar", "lasting_streams", "progress_bar", "stage", "work_bar"]

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


def progress_bar(
    *, shown: bool, total: float | None = None, unit: str = "row", description: str | None = None, leave: bool = True
) -> Any:
    """A tqdm bar on standard error that never stops the work: without a reader, it isn't drawn."""
    from tqdm.auto import tqdm

    stream = sys.stderr if isinstance(sys.stderr, LastingStream) else LastingStream(sys.stderr)
    return tqdm(
        total=total,
        unit=unit,
        desc=description,
        disable=not shown,
        file=stream,
        dynamic_ncols=True,
        smoothing=0.1,
        leave=leave,
    )


@contextmanager
def stage(name: str, *, shown: bool) -> Iterator[None]:
    """Name on a terminal or in a notebook what runs now, while it runs, for work that can't be counted.

    Elsewhere, as in a file of messages, a line that is taken back would stay.
    """
    taken_back = sys.stderr.isatty() or "ipykernel" in sys.modules
    with progress_bar(shown=shown and taken_back, total=1, unit="step", description=name, leave=False):
        yield


class TimeLeft:
    """How long the rest of some work takes, by the work that is left and the rate so far.

    Pieces of work count by what they cost, in any unit: by their number alone, cheap pieces at the end (or at the
    beginning) would make the time left twice what it is, or half of it.
    """

    def __init__(self, left: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.left = left
        self.done = 0.0
        self._clock = clock
        self._began = self._at = clock()

    def add(self, work: float) -> None:
        """Some work was done now."""
        self.done += work
        self.left -= work
        self._at = self._clock()

    @property
    def seconds(self) -> float | None:
        """Seconds left when the last work was done; ``None`` before any was."""
        passed = self._at - self._began
        return max(0.0, self.left) * passed / self.done if self.done > 0 and passed > 0 else None


class WorkBar:
    """A progress bar of work that is measured by its cost, with the stage that runs and the time left."""

    def __init__(self, bar: Any, left: TimeLeft) -> None:
        self._bar = bar
        self._left = left

    @property
    def finished(self) -> float:
        """Work done so far."""
        return self._left.done

    def stage(self, text: str) -> None:
        """Name what runs now."""
        self._bar.set_description(text)

    def done(self, work: float) -> None:
        """Some work was done."""
        self._left.add(work)
        self._show(work)

    def spare(self, work: float) -> None:
        """Some work needs not be done."""
        self.set_left(self._left.left - work)

    def set_left(self, work: float) -> None:
        """So much work is left."""
        self._left.left = work
        self._show(0.0)

    def _show(self, work: float) -> None:
        left = self._left
        self._bar.total = max(left.done + left.left, left.done)
        if left.seconds is not None:
            self._bar.set_postfix_str(f"about {_clock_face(left.seconds)} left", refresh=False)
        self._bar.update(work)


def _clock_face(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"


@contextmanager
def work_bar(
    work: float, *, shown: bool, stage: str = "", clock: Callable[[], float] = time.monotonic
) -> Iterator[WorkBar]:
    """A `WorkBar` on standard error for so much work, which starts now."""
    with progress_bar(shown=shown, total=work, description=stage) as bar:
        bar.bar_format = "{l_bar}{bar}| {elapsed}{postfix}"
        yield WorkBar(bar, TimeLeft(work, clock))
