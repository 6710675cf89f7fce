"""The state of decoding in a file, so that a run that is stopped resumes in the middle of its texts.

The file is a zip of arrays in NumPy's format. It holds what can't be computed quickly: keys and values, the tokens of
each text, and the residuals that the next tokens come from. A newer state replaces it as a whole.
"""

from __future__ import annotations

import json
import logging
import time
import zipfile
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lensprune.engine.limits import DecodeLimits
from lensprune.engine.out_of_memory import out_of_memory
from lensprune.output.files import write_atomically, write_error
from lensprune.version import __version__

__all__ = ["Array", "Checkpoint", "Saved", "numbered"]

logger = logging.getLogger("lensprune")

MAX_BYTES = 2**31
"""More keys and values than this are not stored."""

MIN_SECONDS, MAX_SECONDS, MAX_SHARE, MAX_LOSS = 5.0, 600.0, 0.025, 0.05
"""The next state is due after `MIN_SECONDS`; later after a share `MAX_LOSS` of the time so far, or `MAX_SECONDS`. It is
is written so rarely that this takes at most a share `MAX_SHARE` of the time."""

CAREFUL_SPEED, MEASURED_BYTES = 2e8, 2**26
"""Bytes per second that are assumed at first (a laptop's disk takes several times as many), and how large a state must
be for its speed to count."""

_ABOUT = "about.json"
_BFLOAT16 = "bfloat16"

Array = np.ndarray | torch.Tensor


class Saved:
    """A stored state: what it says about itself, and its arrays by name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._zip = zipfile.ZipFile(path)
        try:
            if self._zip.testzip() is not None:
                raise zipfile.BadZipFile("a checksum doesn't match")
            self.about: dict[str, Any] = json.loads(self._zip.read(_ABOUT))
            names = [*self.about["variants"], *self.about["beside"]]
            facts = {"version", "requests", "types", "table", "rows", "kv_bytes"}
            if not all(isinstance(name, str) for name in names) or not facts <= self.about.keys():
                raise zipfile.BadZipFile("it lacks facts")
        except BaseException:
            self._zip.close()
            raise

    def close(self) -> None:
        self._zip.close()

    def array(self, name: str) -> np.ndarray:
        with self._zip.open(f"{name}.npy") as file:
            array: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
        return array

    def tensor(self, name: str, device: torch.device | str) -> torch.Tensor:
        tensor = torch.from_numpy(self.array(name))
        if self.about["types"][name] == _BFLOAT16:
            tensor = tensor.view(torch.bfloat16)
        return tensor.to(device)

    def tensors(self, name: str, device: torch.device | str) -> list[torch.Tensor]:
        """Those that were `numbered`."""
        found: list[torch.Tensor] = []
        while f"{name}.{len(found)}" in self.about["types"]:
            found.append(self.tensor(f"{name}.{len(found)}", device))
        return found


class Checkpoint:
    """The file for some requests under some variants, read at the start and replaced from time to time.

    A file that can't be read counts as none, with a warning; one of another version, without.

    Args:
        path: the file; neither it nor its folder need exist.
        before_write: called before each write, to store the answers that the state no longer holds.
        on_known: a `WorkCallback` for what the stored state spares.
        clock: returns the time in seconds; replaced by tests.
    """

    speed = CAREFUL_SPEED
    """Bytes per second of the last large write by this process."""

    def __init__(
        self,
        path: Path,
        before_write: Callable[[], object] = lambda: None,
        on_known: Callable[[str, float], object] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path, self._before_write, self._clock = path, before_write, clock
        self.on_known = on_known
        self._saved = self._read()
        self._began, self._active = clock(), True
        self._due_at = self._began + MIN_SECONDS

    @property
    def variants(self) -> frozenset[str]:
        """Names of the variants of the stored state, until it is taken."""
        return frozenset() if self._saved is None else frozenset(self._saved.about["variants"])

    @property
    def beside(self) -> frozenset[str]:
        """Names of the variants that must be given besides, so that the prompts have the same marks."""
        return frozenset() if self._saved is None else frozenset(self._saved.about["beside"])

    def take(self, requests: Container[int], variants: Container[str], limits: DecodeLimits) -> Saved | None:
        """The stored state, once, if it is of these requests and variants and within the limits."""
        saved = self._saved
        if saved is None or not all(v in variants for v in saved.about["variants"]):
            return None
        self._saved = None
        about = saved.about
        fits = about["rows"] <= limits.rows and about["kv_bytes"] <= limits.kv_bytes
        # A single row may take more than the limits.
        if not fits and len(about["requests"]) > 1:
            logger.warning(f"{self._path} needs more memory than this run may use: unfinished texts begin again")
        elif all(i in requests for i in about["requests"]):
            return saved
        saved.close()
        return None

    def drop(self) -> None:
        """Forget the stored state, which is of no use here."""
        if self._saved is not None:
            self._saved.close()
        self._saved = None

    def due(self) -> bool:
        """Whether it is time to store a state: not while a stored one is still to be taken."""
        return self._active and self._saved is None and self._clock() >= self._due_at

    def write(self, about: Mapping[str, Any], arrays: Iterable[tuple[str, Array]], kv_bytes: int) -> None:
        """Replace the file, unless the state has too many bytes, or writing it would take too long for so short a run.

        If it can't be written, warn, and write no more: the state before it remains.
        """
        began = self._clock()
        self._due_at = began + MIN_SECONDS
        if kv_bytes > MAX_BYTES or kv_bytes / self.speed > MAX_SHARE * (began - self._began):
            return
        self._before_write()
        began = self._clock()
        try:
            self._path.parent.mkdir(exist_ok=True)
            write_atomically(self._path, partial(_fill, about, arrays))
        except Exception as error:
            if not (isinstance(error, OSError) or out_of_memory(error)):
                raise
            self._active = False
            reason = write_error(error, self._path) if isinstance(error, OSError) else f"{self._path}: out of memory"
            logger.warning(f"{reason}; texts that are being written are no longer kept, should the run be stopped")
            return
        now = self._clock()
        if kv_bytes >= MEASURED_BYTES and now > began:
            Checkpoint.speed = kv_bytes / (now - began)
        share, loss = (now - began) / MAX_SHARE, (now - self._began) * MAX_LOSS
        self._due_at = now + max(MIN_SECONDS, share, min(loss, MAX_SECONDS))

    def _read(self) -> Saved | None:
        try:
            saved = Saved(self._path)
        except FileNotFoundError:
            return None
        except Exception as error:
            # Whatever the zip's and NumPy's formats make of damaged bytes.
            reason = error.strerror if isinstance(error, OSError) else "it is damaged"
            logger.warning(f"cannot read {self._path} ({reason}): unfinished texts begin again")
            return None
        if saved.about["version"] == __version__:
            return saved
        saved.close()
        return None


def numbered(name: str, arrays: Iterable[Array]) -> Iterator[tuple[str, Array]]:
    """Names for arrays that `Saved.tensors` finds."""
    return ((f"{name}.{i}", array) for i, array in enumerate(arrays))


def _in_numpy(array: Array) -> np.ndarray:
    if isinstance(array, np.ndarray):
        return array
    # NumPy has no bfloat16.
    tensor = array.detach().view(torch.int16) if array.dtype == torch.bfloat16 else array.detach()
    # NumPy writes views in small pieces.
    return tensor.cpu().contiguous().numpy()


def _fill(about: Mapping[str, Any], arrays: Iterable[tuple[str, Array]], path: Path) -> None:
    types = {}
    with zipfile.ZipFile(path, "w") as file:
        for name, array in arrays:
            types[name] = str(array.dtype).removeprefix("torch.")
            # With a fixed date: zips know none before 1980, which a machine's clock may show.
            with file.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, _in_numpy(array), allow_pickle=False)
        file.writestr(zipfile.ZipInfo(_ABOUT), json.dumps({**about, "version": __version__, "types": types}))
