"""A small model whose weights ship with the package, checked by its hash on every load."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lensprune.errors import UserError
from lensprune.models.cache import hash_file
from lensprune.packaged import data_folder

if TYPE_CHECKING:
    from lensprune.models.sources.base import LoadedModel, LoadOptions

__all__ = ["PackagedModel"]

_WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class PackagedModel:
    """A folder in Hugging Face's layout below the package's data; `sha256` is that of its weights file."""

    name: str
    sha256: str

    def folder(self) -> Path:
        """Where the files are.

        Raises:
            UserError: the package was installed without them.
        """
        folder = data_folder() / "toys" / self.name
        if not (folder / _WEIGHTS).is_file():
            raise UserError(f"model {self.name!r} is not in the package's data ({folder}): install lensprune again")
        return folder

    def load(self, options: LoadOptions) -> LoadedModel:
        """Load after checking the weights' hash.

        Raises:
            UserError: the files are missing, or differ from the original ones.
        """
        from lensprune.models.sources.base import LoadedModel
        from lensprune.models.sources.pretrained import load_folder

        folder = self.folder()
        digest = hash_file(folder / _WEIGHTS)
        if digest != self.sha256:
            raise UserError(f"{folder / _WEIGHTS} has sha256 {digest}, expected {self.sha256}: install lensprune again")
        loaded = load_folder(folder, options, name=self.name)
        return LoadedModel(loaded.hf_model, loaded.tokenizer, f"packaged:{self.name}")
