"""Standard output, standard error and progress bars that keep working when their reader is gone."""

from __future__ import annotations

import codecs
import errno
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
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
    *,
    shown: bool,
    total: float | None = None,
    unit: str = "row",
    description: str | None = None,
    leave: bool = True,
    bar_format: str | None = None,
) -> Any:
    """A tqdm bar on standard error that never stops the work: without a reader, it isn't drawn, nor if there is nothing
    to do."""
    from tqdm.auto import tqdm

    stream = sys.stderr if isinstance(sys.stderr, LastingStream) else LastingStream(sys.stderr)
    # Without a total, tqdm writes the unit right after the number.
    unit = unit if total else f" {unit}"
    return tqdm(
        total=total, unit=unit, desc=description, disable=not shown or total == 0, file=stream, dynamic_ncols=True,
        smoothing=0.1, leave=leave, bar_format=bar_format,
    )  # fmt: skip


@contextmanager
def stage(name: str, *, shown: bool) -> Iterator[None]:
    """Name on a terminal or in a notebook what runs now, while it runs, for work that can't be counted.

    Elsewhere, as in a file of messages, a line that is taken back would stay.
    """
    taken_back = sys.stderr.isatty() or _in_notebook()
    with progress_bar(shown=shown and taken_back, total=1, unit="step", description=name, leave=False):
        yield


def _in_notebook() -> bool:
    """Whether a notebook's kernel runs this code: importing ipykernel, as a library may, is not enough."""
    get_shell = getattr(sys.modules.get("IPython"), "get_ipython", None)
    return get_shell is not None and getattr(get_shell(), "kernel", None) is not None


class TimeLeft:
    """How long the rest of some work takes, by the work that is left and the pace so far.

    Pieces of work count by what they cost, in any unit: by their number alone, cheap pieces at the end (or at the
    beginning) would make the time left twice what it is, or half of it. Each kind of work has its own pace, and one
    that was not done yet that of all.

    Work that is `planned` counts in the seconds that it is expected to take. This pace then weighs as much as a fifth
    of all work of a kind: what comes before the first piece, such as reading prompts, or a first task that is slower
    than the others, is not taken for the pace of all.
    """

    def __init__(
        self, left: Mapping[str, float], clock: Callable[[], float] = time.monotonic, *, planned: bool = False
    ) -> None:
        self.left = dict(left)
        self._expected = {kind: work / 5 for kind, work in left.items()} if planned else {}
        self._done: dict[str, tuple[float, float]] = {}
        self._clock = clock
        self._at = clock()

    @property
    def done(self) -> float:
        """All work that was done."""
        return sum(work for work, _ in self._done.values())

    @property
    def total(self) -> float:
        """All work, done and left."""
        return self.done + max(0.0, sum(self.left.values()))

    def add(self, work: float, kind: str) -> None:
        """Some work of one kind was done, in the time since the last."""
        now = self._clock()
        before, seconds = self._done.get(kind, (0.0, 0.0))
        self._done[kind] = before + work, seconds + now - self._at
        self.left[kind] = self.left.get(kind, 0.0) - work
        self._at = now

    @property
    def seconds(self) -> float | None:
        """Seconds left when the last work was done; ``None`` before any was."""
        known = {
            kind: (work + self._expected.get(kind, 0.0), seconds + self._expected.get(kind, 0.0))
            for kind, (work, seconds) in self._done.items()
        }
        done, passed = (sum(numbers) for numbers in zip(*known.values(), strict=True)) if known else (0.0, 0.0)
        if done <= 0 or passed <= 0:
            return None
        paces = {kind: seconds / work for kind, (work, seconds) in known.items() if work > 0 and seconds > 0}
        return sum(max(0.0, work) * paces.get(kind, passed / done) for kind, work in self.left.items())


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

    def done(self, work: float, kind: str) -> None:
        """Some work of one kind was done."""
        self._left.add(work, kind)
        self._show(work)

    def spare(self, work: float, kind: str) -> None:
        """Some work needs not be done."""
        self._left.left[kind] = self._left.left.get(kind, 0.0) - work
        self._show(0.0)

    def set_left(self, left: Mapping[str, float]) -> None:
        """So much work of each kind is left, and none of others."""
        self._left.left = dict(left)
        self._show(0.0)

    def _show(self, work: float) -> None:
        self._bar.total = self._left.total
        if self._left.seconds is not None:
            self._bar.set_postfix_str(f"about {_clock_face(self._left.seconds)} left", refresh=False)
        self._bar.update(work)


def _clock_face(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"


@contextmanager
def work_bar(
    left: Mapping[str, float], *, shown: bool, planned: bool = False, clock: Callable[[], float] = time.monotonic
) -> Iterator[WorkBar]:
    """A `WorkBar` on standard error for so much work of each kind, which starts now; `planned` as for `TimeLeft`."""
    with progress_bar(shown=shown, total=sum(left.values()), bar_format="{l_bar}{bar}| {elapsed}{postfix}") as bar:
        yield WorkBar(bar, TimeLeft(left, clock, planned=planned))
