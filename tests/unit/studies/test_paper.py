"""A study runs its sweeps, goes on where it stopped, and ends in a page that links to them."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import pandas as pd
import pytest

import lensprune as lp
from lensprune.cli import main
from lensprune.errors import UserError
from lensprune.studies import paper as study
from lensprune.studies.pair import NO_PAIR, moved
from lensprune.studies.presets import PRESETS, Preset, StudyPart
from lensprune.tasks import get_task
from tests.helpers.families import save_folder

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
    small = replace(PRESETS["smoke"], parts=tuple(parts), pair=None)
    monkeypatch.setitem(PRESETS, "smoke", small)
    return small


@pytest.mark.slow
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
    stopped = capsys.readouterr().err.splitlines()[-1]
    assert stopped == f"lensprune: stopped: rerun the command to resume the study in {out}"
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
    assert NO_PAIR in page
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


@pytest.mark.slow
def test_the_pair_is_swept_compared_and_exchanged(
    deep: Path, family_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smoke, one = PRESETS["smoke"], ("facts",)
    sweeps = tuple(replace(part, tasks=one, protocols=("continuation",), limit=2) for part in smoke.pair_sweeps)
    replacements = tuple(replace(part, tasks=one, protocols=("continuation",), limit=2) for part in smoke.replacements)
    first = replace(smoke.parts[0], tasks=one, protocols=("continuation",), limit=2)
    thinking = tuple(replace(part, tasks=one, limit=2, max_new_tokens=9) for part in smoke.thinking)
    small = replace(smoke, parts=(first,), pair_sweeps=sweeps, replacements=replacements, thinking=thinking)
    monkeypatch.setitem(PRESETS, "smoke", small)
    out, model = tmp_path / "study", str(family_folder("llama"))
    command = ["paper", "--model", model, "--out", str(out), "--device", "cpu", "--base", model, "--distilled", model]
    assert main(command) == 0
    page = html.unescape((out / "report.html").read_text(encoding="utf-8"))
    links = re.findall(r'<td><a href="([^"]*)"', page)
    assert links[1:] == [
        "pair/layers-base/report.html", "pair/layers-distilled/report.html", "pair/layers-compared.html",
        *(f"pair/{one.name}/report.html" for one in small.replacements),
    ]  # fmt: skip
    assert all((out / link).is_file() for link in links)
    assert page.count("<figure>") == 2 + 4 + 1
    for role in ("base", "distilled"):
        assert f'<a href="pair/thinking-{role}-no-chat-format/report.html">{role}, no chat format</a>' in page
        assert (out / "pair" / f"thinking-{role}-no-chat-format" / "report.html").is_file()
    # A model exchanged with itself: nothing is gained by anything.
    table = pd.read_csv(out / "pair" / "layer-cumulative" / "replacement.csv")
    assert (table["effect"] == 0).all()
    assert set(table["part"]) == {"L0", "L0..L1", "L0..L2"}
    kept = {path: path.stat().st_mtime_ns for path in (out / "pair").glob("*/records/*")}
    assert main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in (out / "pair").glob("*/records/*")} == kept


def test_half_a_pair_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="without --distilled"):
        study.paper("smollm2-135m", tmp_path / "out", base="toy-base")
    with pytest.raises(UserError, match="without --base"):
        study.paper("smollm2-135m", tmp_path / "out", preset="full", distilled="toy-base")
    assert not (tmp_path / "out").exists()


def test_the_verdict_on_distillation() -> None:
    row = {
        "statistic": "participation_ratio",
        "task_kind": "reasoning",
        "ci_low": 0.1,
        "ci_high": 2.0,
        "at_chance": False,
    }
    unclear = {**row, "ci_low": -0.1}
    for rows, verdict in (
        ([row], "seen"),
        ([{**row, "ci_low": -2.0, "ci_high": -0.1}], "seen"),
        ([unclear], "not resolvable"),
        ([row, unclear], "mixed"),
        ([{**row, "at_chance": True}], "not resolvable"),
        ([{**row, "task_kind": "retrieval"}], "not measured"),
        ([{**row, "statistic": "gini"}], "not measured"),
    ):
        assert moved(pd.DataFrame(rows))[0] == verdict


@pytest.mark.parametrize("preset", list(PRESETS.values()), ids=list(PRESETS))
def test_presets_name_tasks_and_protocols_that_exist(preset: Preset) -> None:
    assert preset.parts[0].depth is None
    assert {(one.component, one.mode) for one in preset.replacements} == {
        (component, mode) for component in ("attention_output", "layer") for mode in ("single", "cumulative")
    }
    assert all(max(part.budgets) < part.max_new_tokens for part in preset.thinking)
    for task in [task for part in preset.thinking for task in part.tasks]:
        assert "generate" in get_task(task).formats
    for part in [*preset.parts, *preset.pair_sweeps, *preset.replacements]:
        for task in part.tasks:
            assert set(part.protocols) <= set(get_task(task).formats)
