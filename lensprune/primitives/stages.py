"""Finished stages of `primitives` in a folder, so that a stopped run can be continued."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from lensprune.models.base import ModelFacts
from lensprune.output.files import write_atomically, write_error
from lensprune.version import __version__

__all__ = ["Stages"]


class Stages:
    """Arrays that stages computed, each in a file named after what determines them: the model, and what the stage was
    given. Without a folder, nothing is kept."""

    def __init__(self, folder: Path | None, facts: ModelFacts) -> None:
        self._folder = folder
        self._model = (
            __version__, facts.weights_hash, facts.config_hash, facts.tokenizer_hash, facts.dtype, facts.kept_hooks,
        )  # fmt: skip

    def get(
        self, name: str, given: object, compute: Callable[[], Mapping[str, np.ndarray]]
    ) -> Mapping[str, np.ndarray]:
        """The arrays of a finished stage, or those that `compute` returns, which are kept.

        Args:
            given: what they depend on apart from the model; its `repr` tells it from other stages of this name.

        Raises:
            UserError: the folder can't be written to.
        """
        if self._folder is None:
            return compute()
        key = hashlib.sha256(repr((self._model, given)).encode()).hexdigest()[:16]
        path = self._folder / f"{name}-{key}.npz"
        try:
            with np.load(path, allow_pickle=False) as file:
                return dict(file)
        except (FileNotFoundError, zipfile.BadZipFile, ValueError):
            # Not finished, or damaged.
            arrays = compute()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, partial(_save, arrays))
        except OSError as error:
            raise write_error(error, path) from None
        return arrays


def _save(arrays: Mapping[str, np.ndarray], path: Path) -> None:
    with open(path, "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
