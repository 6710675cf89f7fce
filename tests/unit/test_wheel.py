"""The wheel holds all that the package needs, and nothing of the tests."""

from __future__ import annotations

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
