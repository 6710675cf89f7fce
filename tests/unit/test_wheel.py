"""The wheel holds all that the package needs, and nothing of the tests."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    builders = pytest.importorskip("hatchling.builders.wheel", reason="hatchling is not installed")
    folder = tmp_path_factory.mktemp("wheel")
    (path,) = builders.WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])
    return zipfile.ZipFile(path)


def test_data_and_templates_are_in_it_as_they_are(wheel: zipfile.ZipFile) -> None:
    data = [path for path in (ROOT / "data").rglob("*") if path.is_file()]
    templates = [path for path in (ROOT / "lensprune" / "output" / "templates").iterdir() if path.is_file()]
    assert len(data) >= 4
    assert len(templates) >= 6
    for path in data:
        assert wheel.read(f"lensprune/{path.relative_to(ROOT).as_posix()}") == path.read_bytes()
    for path in templates:
        assert wheel.read(path.relative_to(ROOT).as_posix()) == path.read_bytes()


def test_every_module_is_in_it_and_no_test(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "lensprune").rglob("*.py")}
    assert modules <= names
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"lensprune", next(top for top in tops if top.endswith(".dist-info"))}
    entry = next(name for name in names if name.endswith("entry_points.txt"))
    assert "lensprune = lensprune.cli:main" in wheel.read(entry).decode()


@pytest.mark.slow
def test_the_source_distribution_makes_the_same_wheel(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    sdist = pytest.importorskip("hatchling.builders.sdist", reason="hatchling is not installed")
    builders = pytest.importorskip("hatchling.builders.wheel", reason="hatchling is not installed")
    (packed,) = sdist.SdistBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with tarfile.open(packed) as archive:
        archive.extractall(tmp_path, filter="data")
    [unpacked] = [path for path in tmp_path.iterdir() if path.is_dir()]
    for name in ("Makefile", "NOTICE", "docs/index.md", "tests/unit/test_wheel.py", ".mkdocs.yml"):
        assert (unpacked / name).read_bytes() == (ROOT / name).read_bytes()
    (again,) = builders.WheelBuilder(str(unpacked)).build(directory=str(tmp_path), versions=["standard"])
    made = zipfile.ZipFile(again)
    assert {info.filename: info.CRC for info in made.infolist()} == {
        info.filename: info.CRC for info in wheel.infolist()
    }
