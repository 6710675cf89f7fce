"""A study runs its sweeps, goes on where it stopped, and ends in a page that links to them."""

from __future__ import annotations

import html
import re
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import pytest

import lensprune as lp
from lensprune.cli import main
from lensprune.errors import UserError
from lensprune.studies import paper as study
from lensprune.studies.presets import PRESETS, Preset, StudyPart
from lensprune.tasks import get_task
from tests.families import save_folder

mpl.use("agg")


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_folder("llama", tmp_path_factory.mktemp("deep") / "model", num_hidden_layers=10)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Preset:
    """The smoke preset on one task with two items."""
    parts = []
    for part in PRESETS["smoke"].parts:
        tasks = ("facts", "facts_open") if part.name == "open-book" else ("facts",)
        parts.append(replace(part, tasks=tasks, protocols=("continuation",), limit=2))
    small = replace(PRESETS["smoke"], parts=tuple(parts))
    monkeypatch.setitem(PRESETS, "smoke", small)
    return small


def test_a_study_goes_on_and_ends_in_a_page(
    deep: Path, small: Preset, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "study"
    whole = study.sweep
    calls = []

    def stopping(*arguments: object, **options: object) -> lp.Run:
        calls.append(options["out"])
        if len(calls) == 2:
            raise KeyboardInterrupt("stopped")
        return whole(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(study, "sweep", stopping)
    command = ["paper", "--model", str(deep), "--out", str(out), "--device", "cpu"]
    assert main(command) == 130
    kept = {path: path.stat().st_mtime_ns for path in (out / "layers" / "records").iterdir()}
    assert len(kept) == 11
    assert not (out / "report.html").exists()
    assert main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in (out / "layers" / "records").iterdir()} == kept
    assert capsys.readouterr().out.splitlines() == [str(out / "report.html")]
    page = (out / "report.html").read_text(encoding="utf-8")
    links = re.findall(r'<td><a href="([^"]*)"', page)
    assert links == [f"{part.name}/report.html" for part in small.parts]
    assert all((out / link).is_file() for link in links)
    assert all(choice in html.unescape(page) for choice in small.choices)
    heads = lp.Run.load(out / "heads")
    assert {name for name in heads.spec.variant_names if name != "clean"} == {
        f"L{layer}.H{head}.zero" for layer in (5, 6) for head in range(4)
    }


def test_an_unknown_preset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="smoke"):
        study.paper("smollm2-135m", tmp_path / "out", preset="smok")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        study.paper("smollm2-135m", tmp_path / "file")


def test_layers_of_a_share_of_the_depth() -> None:
    part = StudyPart("p", "?", ("facts",), ("default",), "heads", "zero", 1, (0.5, 0.62))
    assert part.layers(30) == "15,16,17,18"
    assert part.layers(3) == "1"
    assert replace(part, depth=None).layers(30) is None


@pytest.mark.parametrize("preset", list(PRESETS.values()), ids=list(PRESETS))
def test_presets_name_tasks_and_protocols_that_exist(preset: Preset) -> None:
    assert preset.parts[0].depth is None
    for part in preset.parts:
        for task in part.tasks:
            assert set(part.protocols) <= set(get_task(task).formats)
