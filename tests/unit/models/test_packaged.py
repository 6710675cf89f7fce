"""Models that ship with the package load from its data, and only with the right bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lensprune.errors import UserError
from lensprune.models.cache import hash_file
from lensprune.models.sources import packaged
from lensprune.models.sources.base import LoadOptions
from lensprune.models.sources.packaged import PackagedModel
from tests.helpers.families import save_folder

OPTIONS = LoadOptions(torch.float32, torch.device("cpu"))


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackagedModel:
    folder = save_folder("llama", tmp_path / "toys" / "tiny")
    monkeypatch.setattr(packaged, "data_folder", lambda: tmp_path)
    return PackagedModel("tiny", hash_file(folder / "model.safetensors"))


def test_loads_from_the_package_s_data(model: PackagedModel) -> None:
    loaded = model.load(OPTIONS)
    assert loaded.source == "packaged:tiny"
    assert loaded.tokenizer.encode("a") == model.load(OPTIONS).tokenizer.encode("a")
    assert model.folder().name == "tiny"


def test_other_bytes_are_refused(model: PackagedModel) -> None:
    weights = model.folder() / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=f"expected {model.sha256}: install lensprune again"):
        model.load(OPTIONS)


def test_missing_files_are_named(model: PackagedModel) -> None:
    with pytest.raises(UserError, match="'nobody' is not in the package's data"):
        PackagedModel("nobody", model.sha256).load(OPTIONS)
