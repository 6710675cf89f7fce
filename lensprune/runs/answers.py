"""Answers of unfinished cells, stored so that a run that is stopped loses little work.

One file per (task, protocol) and block, ``answers/TASK.PROTOCOL.ID.BLOCK.jsonl``, appended to every few seconds. A
line is a checksum and one answer; a line that a kill cut short doesn't fit its checksum and is ignored. The file is
removed once its cells are stored, as is the file beside it that holds texts which are being written, see
`lensprune.engine.decoding.Checkpoint`.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from lensprune.output.files import write_error
from lensprune.protocols.requests import GenerateResponse, LoglikelihoodResponse, Response

__all__ = ["AnswerLog", "Answers", "remove_answers"]

SECONDS_BETWEEN_WRITES = 5.0

Answers = dict[str, dict[int, Response]]
"""By variant, and by the request's index within its (task, protocol)."""


def remove_answers(folder: Path, stem: str = "") -> None:
    """Remove what is left in the ``answers`` of a run folder, once all cells of it, or of the files that begin with
    `stem`, are stored: a run that was killed after its last cell leaves them, and so do answers that another run
    needed. A folder that may not be changed is left as it is."""
    for path in (folder / "answers").glob(f"{stem}*"):
        with suppress(OSError):
            path.unlink()


class AnswerLog:
    """The answers of one (task, protocol) whose cells are not stored yet.

    As a context manager, it writes pending answers if an error or the user stops the work; otherwise it removes the
    file at the end, when the cells contain its answers.

    Args:
        path: the file; it need not exist.
        advice: text for the error if a write fails: what is stored, and how to resume.
        clock: returns the time in seconds; replaced by tests.
    """

    def __init__(
        self, path: Path, advice: Callable[[], str] = str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._path = path
        self._advice = advice
        self._clock = clock
        self._written_at = clock()
        self._lines: list[str] = []

    def __enter__(self) -> AnswerLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        if kind is None:
            self._path.unlink(missing_ok=True)
            self.checkpoint_path.unlink(missing_ok=True)
        else:
            self.write()

    @property
    def checkpoint_path(self) -> Path:
        """Where the state of unfinished texts may be kept."""
        return self._path.with_suffix(".decoding")

    def read(self) -> Answers:
        """The answers in the file."""
        answers: Answers = defaultdict(dict)
        try:
            lines = self._path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return {}
        for line in lines:
            checksum, _, text = line.partition(b" ")
            if checksum == _checksum(text):
                variant, index, kind, values = json.loads(text)
                answers[variant][index] = _response(kind, values)
        return dict(answers)

    def add(self, variant: str, answers: Mapping[int, Response]) -> None:
        """Add answers of a variant, and write pending answers if the last write was a few seconds ago.

        Raises:
            UserError: the file can't be written.
        """
        for index, response in answers.items():
            text = json.dumps([variant, index, type(response).__name__, asdict(response)])
            self._lines.append(f"{_checksum(text.encode()).decode()} {text}\n")
        if self._clock() - self._written_at >= SECONDS_BETWEEN_WRITES:
            self.write()

    def write(self) -> None:
        """Write pending answers and sync them to disk.

        Raises:
            UserError: the file can't be written.
        """
        if self._lines:
            try:
                self._path.parent.mkdir(exist_ok=True)
                with open(self._path, "a", encoding="ascii") as file:
                    # The existing file may end in an incomplete line.
                    file.write("\n" + "".join(self._lines))
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                raise write_error(error, self._path, self._advice()) from None
            self._lines = []
        self._written_at = self._clock()


def _checksum(text: bytes) -> bytes:
    return b"%08x" % zlib.crc32(text)


def _response(kind: str, values: dict[str, object]) -> Response:
    if kind == GenerateResponse.__name__:
        return GenerateResponse(**{**values, "token_ids": tuple(values["token_ids"])})  # type: ignore[arg-type]
    return LoglikelihoodResponse(**values)  # type: ignore[arg-type]
