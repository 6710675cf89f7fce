"""The state of decoding in a file, so that a run that is stopped resumes in the middle of its texts.

The file is a zip of arrays in NumPy's format. It holds what can't be computed quickly: keys and values, the tokens of
each text, and the residuals that the next tokens come from. A newer state replaces it as a whole.
"""

from __future__ import annotations

import json
import logging
import time
import zipfile
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lensprune.output.files import write_atomically, write_error
from lensprune.version import __version__

__all__ = ["Array", "Checkpoint", "Saved", "numbered"]

logger = logging.getLogger("lensprune")

MAX_BYTES = 2**31
"""More keys and values than this are not stored."""

MIN_SECONDS, MAX_SHARE, MAX_LOSS = 5.0, 0.025, 0.05
"""Seconds from one state to the next: enough that writing takes a small share of the time, and few where little would
be lost, as a share of the time so far."""

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

    A damaged file gives a warning, and counts as none, as one of another version does.

    Args:
        path: the file; neither it nor its folder need exist.
        before_write: called before each write, to store the answers that the state no longer holds.
        on_known: a `WorkCallback` for what the stored state spares.
        clock: returns the time in seconds; replaced by tests.
    """

    def __init__(
        self,
        path: Path,
        before_write: Callable[[], object] = lambda: None,
        on_known: Callable[[str, float], object] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path, self._before_write, self._clock = path, before_write, clock
        self.on_known = on_known
        self.requests: Sequence[int] = ()
        """Indices of the requests that are being decoded."""
        self._saved = self._read()
        self._began = self._due_at = clock()
        self._wait(0.0)
        self._active = True

    @property
    def variants(self) -> frozenset[str]:
        """Names of the variants that the stored state needs, until it is taken."""
        return frozenset() if self._saved is None else frozenset(self._saved.about["variants"])

    def take(self, requests: Container[int], variants: Container[str]) -> Saved | None:
        """The stored state, once; ``None`` if there is none, or not all that it needs is given."""
        saved, self._saved = self._saved, None
        if saved is None:
            return None
        about = saved.about
        if all(i in requests for i in about["requests"]) and all(v in variants for v in about["variants"]):
            return saved
        saved.close()
        return None

    def due(self) -> bool:
        """Whether it is time to store a state."""
        return self._active and self._clock() >= self._due_at

    def write(self, about: Mapping[str, Any], arrays: Iterable[tuple[str, Array]], kv_bytes: int) -> None:
        """Replace the file, unless the state has too many bytes. If it can't be written, warn, and write no more."""
        began = self._clock()
        if kv_bytes > MAX_BYTES:
            self._wait(0.0)
            return
        self._before_write()
        try:
            self._path.parent.mkdir(exist_ok=True)
            write_atomically(self._path, partial(_fill, {**about, "requests": list(self.requests)}, arrays))
        except OSError as error:
            self._active = False
            self._path.unlink(missing_ok=True)
            logger.warning(f"{write_error(error, self._path)}; if the run is stopped, unfinished texts begin again")
        self._wait(self._clock() - began)

    def _wait(self, seconds: float) -> None:
        """Choose when the next state is due, after a write that took so long."""
        now = self._clock()
        self._due_at = now + max(MIN_SECONDS, seconds / MAX_SHARE, (now - self._began) * MAX_LOSS)

    def _read(self) -> Saved | None:
        try:
            saved = Saved(self._path)
        except FileNotFoundError:
            return None
        except (OSError, zipfile.BadZipFile, KeyError, ValueError):
            logger.warning(f"{self._path} is damaged: unfinished texts begin again")
            return None
        if saved.about.get("version") == __version__:
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
    return tensor.cpu().numpy()


def _fill(about: Mapping[str, Any], arrays: Iterable[tuple[str, Array]], path: Path) -> None:
    types = {}
    with zipfile.ZipFile(path, "w") as file:
        for name, array in arrays:
            types[name] = str(array.dtype).removeprefix("torch.")
            with file.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, _in_numpy(array), allow_pickle=False)
        file.writestr(_ABOUT, json.dumps({**about, "version": __version__, "types": types}))
