"""A task of a run is found by the name that it was asked by, everywhere."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import pytest

from lensprune.analysis.head_effects import read_effects
from lensprune.analysis.protocol_gap import task_gap
from lensprune.analysis.summary import read_group
from lensprune.cli import main
from lensprune.errors import UserError
from lensprune.results.run import Run
from lensprune.tasks import registry
from tests.helpers.made_runs import heads_run, layers_run

mpl.use("agg")

STORED = "kv_retrieval[ending=reopened,answer=text]"
ASKED = "kv_retrieval[answer=text,pairs=4,ending=reopened]"


@pytest.fixture(scope="module")
def run() -> Run:
    return layers_run(tasks=(STORED, "facts"))


def test_every_method_that_takes_a_task_takes_the_name_it_was_asked_by(run: Run) -> None:
    assert run.task_named(ASKED) == run.task_named(STORED) == STORED
    assert set(run.records(task=ASKED)["task"]) == {STORED}
    for call in (run.critical_layers, run.depth_bands, run.protocol_gap, run.signatures, run.failures):
        mine, theirs = call(task=ASKED), call(task=STORED)
        assert len(mine)
        assert mine.equals(theirs)
    assert run.item("item 1", ASKED).task == STORED
    assert run.compare(run, task=ASKED)["task"].unique().tolist() == [STORED]
    assert run.questions(ASKED, "default").equals(run.questions(STORED, "default"))
    assert run.plot_data("depth", task=ASKED).equals(run.plot_data("depth", task=STORED))
    assert run.select(ASKED) == run.ranked(ASKED) == [(STORED, "default"), (STORED, "generate")]
    group = read_group(run, ASKED, "default")
    assert group is not None
    assert group.task == STORED
    assert group.clean is not None
    assert len(task_gap(run, ASKED, STORED)) == 20


def test_effects_of_heads_too() -> None:
    run = heads_run(tasks=(STORED,))
    assert run.effects(ASKED, "generate")[0].task == STORED
    assert read_effects(run, ASKED, "generate").task == STORED
    assert run.concentration(ASKED)["task"].unique().tolist() == [STORED]


def test_a_file_stands_for_its_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_builders", dict(registry._builders))
    path = tmp_path / "sums.yaml"
    path.write_text("task: sums_of_a_run\ndoc_to_text: '{{a}}'\ndoc_to_target: '{{b}}'\ntest_split: test\n")
    run = layers_run(tasks=("sums_of_a_run",), n=4)
    assert run.task_named(str(path)) == "sums_of_a_run"


@pytest.mark.parametrize(
    "name", ["kv_retrieval", "kv_retrieval[pairs=5]", "fact", "nowhere.yaml", "kv_retrieval[pears=1]"]
)
def test_another_task_is_refused_with_the_nearest(run: Run, name: str) -> None:
    with pytest.raises(UserError, match=r"unknown task of this run .*(facts|kv_retrieval\[ending)"):
        run.records(task=name)


def test_the_command_takes_it_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layers_run(tmp_path / "run", tasks=(STORED,))
    assert main(["analyse", str(tmp_path / "run"), "depth_bands", "--task", ASKED]) == 0
    assert STORED in capsys.readouterr().out
