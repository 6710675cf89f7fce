"""Tasks and analyses of a plug-in: methods, figures, page, files and command line have them."""

from __future__ import annotations

import inspect
import re
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from matplotlib.axes import Axes

import lensprune as lp
from lensprune.cli import main
from lensprune.errors import LensPruneError, UserError
from lensprune.parameters import read_values
from lensprune.results import analyses, figures
from lensprune.results.text import run_report
from lensprune.runs.outcomes import Outcomes
from tests.helpers.made_runs import layers_run
from tests.helpers.plugin import EVERY_WAY, assert_same_and_changed, refused, sweep
from tests.helpers.tolerances import assert_tensors_agree


@pytest.fixture(scope="module")
def on_own_tasks(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, lp.Run]:
    """Runs in folders by executor: own tasks, part, ablation and protocol."""
    out = tmp_path_factory.mktemp("own")
    tasks = ("sums", "sums_told", "sums[largest=4]")
    return {
        name: sweep(folder, tasks=tasks, executor=name, out=out / name) for name in ("hooked", "forked", "backwards")
    }


@pytest.mark.slow
def test_own_tasks_run_under_every_executor(on_own_tasks: dict[str, lp.Run]) -> None:
    runs = on_own_tasks
    assert_same_and_changed(runs["hooked"], runs["forked"], at_least=1e-5)
    assert_same_and_changed(runs["hooked"], runs["backwards"], at_least=1e-5)
    declared = [(task.name, task.kind, task.closed_book) for task in runs["forked"].spec.tasks]
    assert declared == [
        ("sums", "reasoning", None),
        ("sums_told", "reasoning", "sums"),
        ("sums[largest=4]", "reasoning", None),
    ]
    records = runs["forked"].records()
    assert set(records["task"]) == {"sums", "sums_told", "sums[largest=4]"}
    assert records["chance"].to_numpy() == pytest.approx(1 / 3)
    gap = runs["forked"].plot_data("open_closed")
    assert set(zip(gap["task_a"], gap["task_b"], strict=True)) == {("sums", "sums_told")}
    assert set(gap["protocol_a"]) == set(EVERY_WAY)


@pytest.mark.slow
def test_a_map_of_the_own_part(on_own_tasks: dict[str, lp.Run]) -> None:
    run = on_own_tasks["forked"]
    data = run.plot_data("heads")
    assert set(data["component"]) == {"mlp_half"}
    axes = run.plot("heads", "sums", "continuation")
    assert isinstance(axes, Axes)
    assert axes.get_xlabel() == "MLP half"
    assert set(run.plot_data("lorenz", measure="logprob_margin", protocol="opposite")["component"]) == {"mlp_half"}
    plt.close("all")


@pytest.mark.slow
def test_own_analysis_is_in_the_folder_of_every_run(on_own_tasks: dict[str, lp.Run]) -> None:
    tables = {}
    for name, run in on_own_tasks.items():
        assert run.folder is not None
        assert (run.folder / "figures" / "moved_answers.png").read_bytes().startswith(b"\x89PNG")
        tables[name] = pd.read_csv(run.folder / "moved_answers.csv").sort_values(["variant", "task", "protocol"])
        # Six halves on three tasks under two protocols with log-probabilities.
        assert len(tables[name]) == 6 * 3 * 2
        assert (tables[name]["moved"] > 1e-5).all()
        assert str(run.folder / "moved_answers.csv") in run_report(run)
    # They are differences of log-probabilities.
    size = float(on_own_tasks["hooked"].records()["gold_logprob"].abs().max())
    for name in ("forked", "backwards"):
        found, expected = (tables[which]["moved"].to_numpy() for which in (name, "hooked"))
        assert_tensors_agree(found, expected, torch.float32, size=size)


@pytest.mark.slow
def test_own_analysis_is_a_method_and_a_figure(on_own_tasks: dict[str, lp.Run]) -> None:
    run = on_own_tasks["forked"]
    table = run.moved_answers("sums", "opposite")
    assert set(zip(table["task"], table["protocol"], strict=True)) == {("sums", "opposite")}
    pd.testing.assert_frame_equal(run.plot_data("moved_answers", "sums", "opposite"), table)
    middle = float(table["moved"].median())
    assert 0 < len(run.moved_answers("sums", "opposite", at_least=middle)) < len(table)
    axes = run.plot("moved_answers", "sums", "opposite")
    assert isinstance(axes, Axes)
    assert [bar.get_height() for bar in axes.patches] == table["moved"].tolist()  # type: ignore[attr-defined]
    plt.close("all")
    assert "moved_answers" in dir(run)
    assert not hasattr(run, "moved_answer")
    with pytest.raises(UserError, match="unknown analysis 'moved_answer': did you mean moved_answers"):
        run.plot("moved_answer")
    with pytest.raises(UserError, match="unknown option of analysis 'moved_answers' 'at_last': did you mean at_least"):
        run.plot_data("moved_answers", at_last=1)
    with pytest.raises(UserError, match="unknown task of this run 'sum': did you mean sums"):
        run.moved_answers("sum")
    with pytest.raises(UserError, match="nothing is moved"):
        run.moved_answers("sums", "generate")


@pytest.mark.slow
def test_own_analysis_is_on_the_page(on_own_tasks: dict[str, lp.Run], tmp_path: Path) -> None:
    page = on_own_tasks["forked"].report(tmp_path / "page.html").read_text(encoding="utf-8")
    [section] = re.findall(r'<h3 id="analysis-moved_answers">(.*?)(?:<h3|</section>)', page, re.DOTALL)
    assert section.startswith("Moved &lt;answers&gt;</h3>")
    assert 'alt="Bars: 36 of them"' in section
    assert "How far a variant moves the answer&#39;s log-probability, in nats." in section
    assert 'download="moved_answers_figure.csv"' in section
    assert section.count("<tr") == 1 + 36
    assert "L2.mlp1.halve" in section


@pytest.mark.slow
def test_own_analysis_on_the_command_line(
    on_own_tasks: dict[str, lp.Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = on_own_tasks["forked"]
    folder = str(run.folder)
    assert main(["analyse", folder]) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("moved_answers")]
    assert line.split() == ["moved_answers", "at_least=0.0", "Moved", "<answers>"]
    assert main(["analyse", folder + "/records"]) == 2
    assert "contains no run" in capsys.readouterr().err
    narrow = ["--task", "sums[largest=4]", "--protocol", "continuation", "--out", str(tmp_path / "out")]
    assert main(["analyse", folder, "moved_answers[at_least=0.00001]", *narrow]) == 0
    shown = capsys.readouterr().out
    assert "Moved <answers>" in shown
    table = run.moved_answers("sums[largest=4]", "continuation")
    for variant, moved in zip(table["variant"], table["moved"], strict=True):
        assert re.search(rf"{re.escape(variant)} +sums\[largest=4\] +continuation +{moved:.3f}\n", shown)
    assert sorted(path.name for path in (tmp_path / "out").rglob("*.*")) == ["moved_answers.csv", "moved_answers.png"]
    for given, said in (
        (["moved_answer"], "unknown analysis 'moved_answer': did you mean moved_answers"),
        (
            ["moved_answers[at_last=1]"],
            "unknown parameter of analysis 'moved_answers' 'at_last': did you mean at_least",
        ),
        (["moved_answers[at_least=much]"], "'much' is not a number"),
        (["moved_answers", "--protocol", "generate"], "nothing is moved"),
        (["moved_answers", "--task", "sum"], "did you mean sums"),
        (["critical_layers", "--out", folder + "/spec.json"], "spec.json"),
    ):
        assert main(["analyse", folder, *given]) == 2, given
        captured = capsys.readouterr()
        assert said in captured.err
        assert captured.err.count("\n") == 1


def test_a_file_among_the_figures_is_an_analysis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside the package one file is all that a new analysis takes."""
    (tmp_path / "planted.py").write_text(PLANTED, encoding="utf-8")
    monkeypatch.setattr(figures, "__path__", [*figures.__path__, str(tmp_path)])
    run = layers_run(n=8, tasks=("facts",), protocols=("default",), n_layers=3)
    assert run.planted(least=2)["n"].tolist() == [8, 8, 8, 8]
    assert "Variants that were planted" in run.report(tmp_path / "page.html").read_text(encoding="utf-8")
    for name in [name for name in sys.modules if name.endswith(".planted")]:
        monkeypatch.delitem(sys.modules, name)


PLANTED = """
from lensprune.analysis.summary import summarise_cells
from lensprune.results.analyses import register_analysis


@register_analysis(title="Variants that were planted", columns={"variant": "", "n": "d"})
def planted(outcomes, task=None, protocol=None, *, least: int = 0):
    frame = summarise_cells(outcomes, task, protocol)
    return frame[frame["n"] >= least]
"""


def test_own_task_is_planned_and_listed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks"]) == 0
    assert "largest=5" in capsys.readouterr().out
    plan = ["plan", "--model", str(folder), "--protocol", "opposite", "--over", "mlp-halves", "--flops", "1e12"]
    assert main([*plan, "--task", "sums[largest=4]"]) == 0
    assert "sums[largest=4]" in capsys.readouterr().out
    assert main([*plan, "--task", "sum"]) == 2
    assert "unknown task 'sum': did you mean sums" in capsys.readouterr().err


def test_what_is_no_analysis_is_refused() -> None:
    def needs(outcomes: Outcomes, task: str | None = None, *, k: int) -> pd.DataFrame:
        return pd.DataFrame()

    refused(lambda: lp.register_analysis(needs), "analysis 'needs': option 'k' needs a default value")
    refused(
        lambda: lp.register_analysis(name="depth")(lambda outcomes: pd.DataFrame()),
        r"analysis name 'depth' is taken by lensprune\.",
    )
    refused(lambda: lp.register_analysis(name="a b")(lambda outcomes: pd.DataFrame()), "start with a letter")
    one = analyses.Analysis("one", "One", "", lambda outcomes: pd.DataFrame({"a": [1]}), columns={"b": "d"})
    run = layers_run(n=2, n_layers=1)
    with pytest.raises(LensPruneError, match="the table of analysis 'one' lacks the column 'b'"):
        one.table(run)
    with pytest.raises(UserError, match="analysis 'one' has no figure"):
        replace(one, columns={}).figure(run)


def test_an_analysis_cannot_take_the_place_of_a_part_of_a_run() -> None:
    parts_of_run = {name for owner in lp.Run.__mro__ for name in vars(owner) if not name.startswith("_")}
    assert parts_of_run <= analyses._TAKEN
    for name in ("summary", "records", "spec"):
        with pytest.raises(UserError, match=f"can't be named '{name}', which is a part of every run"):
            lp.register_analysis(name=name)(lambda outcomes, task=None, protocol=None: None)


def test_annotations_that_only_a_type_checker_sees() -> None:
    def lazily(outcomes: "Unimported", k: int = 1) -> None: ...  # type: ignore[name-defined]  # noqa: F821, UP037

    options = dict(list(inspect.signature(lazily).parameters.items())[1:])
    assert read_values(lazily, options, {}, "analysis 'lazily'") == {}
    with pytest.raises(UserError, match="'Unimported' can't be resolved: import it outside of TYPE_CHECKING"):
        read_values(lazily, options, {"k": "2"}, "analysis 'lazily'")


def test_the_open_book_task_has_the_figure_of_both(tmp_path: Path) -> None:
    run = layers_run(tasks=("facts", "facts_open"), n=20)
    by_closed, by_open = (run.plot_data("open_closed", task) for task in ("facts", "facts_open"))
    pd.testing.assert_frame_equal(by_closed, by_open)
    assert len(by_open)
