"""Options of a sweep that decide what is asked: they are recorded, and a resumed run has them again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

import lensprune as lp
from lensprune.cli import main
from lensprune.errors import UserError
from lensprune.runs.folder import read_spec
from lensprune.sweeps.options import SweepOptions
from lensprune.sweeps.run import _options_of
from lensprune.sweeps.task_loading import load_tasks
from lensprune.tasks import registry, task_names
from tests.helpers.families import save_folder
from tests.helpers.sweeps import sweep

CLOCK = "{{ strftime_now('%d %b %Y') }}: {{ messages[-1].content }}"


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten after it."""
    task_names()
    monkeypatch.setattr(registry, "_builders", dict(registry._builders))


@pytest.fixture
def overlapping(tmp_path: Path) -> str:
    """A task two of whose three rows are among its two examples."""
    rows = [{"q": f"{i}+{i}", "a": str(2 * i)} for i in range(1, 5)]
    for split, own in (("test", rows[:3]), ("train", [rows[1], rows[2]])):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    config = {
        "task": "overlapping",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": "test.jsonl", "train": "train.jsonl"}},
        "test_split": "test",
        "training_split": "train",
        "num_fewshot": 2,
        "doc_to_text": "{{q}}=",
        "doc_to_target": "a",
        "generation_kwargs": {"max_gen_toks": 4},
    }
    path = tmp_path / "overlapping.yaml"
    path.write_text(yaml.safe_dump(config))
    return str(path)


def with_clock(folder: Path, template: str = CLOCK) -> Path:
    save_folder("llama", folder)
    (folder / "chat_template.jinja").write_text(template)
    return folder


def lose_a_cell(out: Path) -> None:
    next((out / "records").glob("*L0*")).unlink()


@pytest.mark.slow
def test_items_among_their_own_examples_are_left_out_of_a_sweep_and_of_the_resumed_one(
    overlapping: str, tmp_path: Path
) -> None:
    folder, out = save_folder("llama", tmp_path / "model"), tmp_path / "run"
    command = ["sweep", "--model", str(folder), "--task", overlapping, "--protocol", "generate", "--device", "cpu"]
    assert main([*command, "--leave-out-repeated", "--out", str(out)]) == 0
    spec = read_spec(out)
    assert spec.leave_out_repeated
    assert [task.n_items for task in spec.tasks] == [1]
    before = lp.Run.load(out).records()
    assert set(before["item_id"]) == {"0"}
    lose_a_cell(out)
    again = lp.resume(out, progress=False)
    assert again.n_finished == again.n_expected
    assert set(again.records()["item_id"]) == {"0"}
    # Without the option there are three items: another run.
    with pytest.raises(UserError, match=r"numbers of items: \[1\] there, \[3\] here"):
        sweep(folder, out, tasks=overlapping, protocols="generate", shots=None, limit=None)
    kept = sweep(folder, tasks=overlapping, protocols="generate", shots=None, limit=None)
    assert set(kept.records()["item_id"]) == {"0", "1", "2"}
    assert not kept.spec.leave_out_repeated


@pytest.mark.slow
def test_a_template_date_is_recorded_and_resumed(tmp_path: Path) -> None:
    folder, out = with_clock(tmp_path / "model"), tmp_path / "run"
    asked = {"tasks": "facts", "protocols": "continuation", "chat_template": True}
    first = sweep(folder, out, **asked, template_date="2031-01-02")
    assert first.spec.template_date == "2031-01-02"
    lose_a_cell(out)
    again = lp.resume(out, progress=False)
    assert again.n_finished == again.n_expected
    assert again.spec.template_date == "2031-01-02"
    assert _options_of(again.spec).template_date == "2031-01-02"
    page = again.report(tmp_path / "page.html").read_text(encoding="utf-8")
    assert "chat template: yes, dated 2031-01-02" in page
    usual = sweep(folder, **asked)
    assert usual.spec.template_date == "2024-07-26"
    assert usual.spec.conditions[0].prompts_hash != again.spec.conditions[0].prompts_hash
    # Another date would ask other prompts: it is named.
    with pytest.raises(UserError, match=r'date \(template_date\): "2031-01-02" there, "2024-07-26" here'):
        sweep(folder, out, **asked)


def test_a_template_without_a_clock_records_no_date_and_takes_none(tmp_path: Path) -> None:
    folder = with_clock(tmp_path / "model", "{{ messages[-1].content }}")
    asked = {"tasks": "facts", "protocols": "continuation", "chat_template": True}
    run = sweep(folder, **asked)
    assert run.spec.chat_template
    assert run.spec.template_date is None
    with pytest.raises(UserError, match="reads no clock"):
        sweep(folder, **asked, template_date="2031-01-02")


def test_the_command_line_refuses_a_date_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["sweep", "--model", "toy-base", "--task", "facts", "--chat-template", "--template-date", "tomorrow"]
    assert main(command) == 2
    assert "template date 'tomorrow' is not a date: expected one like 2024-07-26" in capsys.readouterr().err
    theirs = ["sweep", "--model", "toy-base", "--lm-eval-task", "hellaswag", "--template-date", "2024-07-26"]
    assert main(theirs) == 2
    assert "--template-date has no effect with --lm-eval-task" in capsys.readouterr().err


def test_every_function_that_loads_tasks_leaves_repeated_items_out(overlapping: str) -> None:

    options = SweepOptions.given(overlapping, "generate", "layers", leave_out_repeated=True)
    [loaded] = load_tasks(options)
    assert [item.id for item in loaded.items] == ["0"]
