"""Generation settings and sampling from the options of a sweep to its spec, records and summary."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import lensprune as lp
from lensprune.errors import UserError
from lensprune.results.text import run_report
from lensprune.runs.store import RunStore
from tests.helpers.sweeps import sweep

SAMPLED: dict[str, Any] = {
    "tasks": ["facts", "arithmetic"],
    "protocols": ["continuation", "generate"],
    "max_new_tokens": 5,
    "temperature": 1.2,
    "top_p": 0.9,
    "samples": 3,
    "seed": 11,
}


@pytest.fixture(scope="module")
def folder(family_folder: Callable[[str], Path]) -> Path:
    return family_folder("llama")


@pytest.fixture(scope="module")
def sampled(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> lp.Run:
    return sweep(folder, tmp_path_factory.mktemp("sampled") / "run", **SAMPLED)


def files(out: Path | None) -> dict[str, bytes]:
    assert out is not None
    return {path.name: path.read_bytes() for path in sorted((out / "records").glob("*.parquet"))}


def test_a_sampled_sweep_is_the_same_again_however_it_runs(folder: Path, sampled: lp.Run) -> None:
    for executor in ("hooked", "forked"):
        again = sweep(folder, None, **SAMPLED, executor=executor, batch_tokens=60)
        assert again.records()["text"].tolist() == sampled.records()["text"].tolist()
    other = sweep(folder, None, **{**SAMPLED, "seed": 12}, shots=0).records(protocol="generate")
    assert other["text"].tolist() != sampled.records(protocol="generate")["text"].tolist()


@pytest.mark.parametrize("after", [0, 5, 13])
def test_stopped_and_resumed_samples_the_same(
    folder: Path, sampled: lp.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    write, written = RunStore.write, 0

    def stop(store: RunStore, *args: Any) -> None:
        nonlocal written
        if written == after:
            raise KeyboardInterrupt
        written += 1
        write(store, *args)

    monkeypatch.setattr(RunStore, "write", stop)
    with pytest.raises(KeyboardInterrupt, match=f"{after} of 16 cells (and answers of unfinished ones )?are stored"):
        sweep(folder, tmp_path / "run", **SAMPLED)
    monkeypatch.setattr(RunStore, "write", write)
    resumed = lp.resume(tmp_path / "run", progress=False)
    assert files(resumed.folder) == files(sampled.folder)
    pd.testing.assert_frame_equal(resumed.summary(), sampled.summary())


def test_records_hold_every_sample_and_why_it_ended(sampled: lp.Run) -> None:
    generated = sampled.records("clean", "facts", "generate", prompts=True)
    assert generated["sample"].tolist() == [0, 1, 2] * 3
    assert generated["item_id"].tolist() == [item for item in generated["item_id"].unique() for _ in range(3)]
    assert generated["prompt"].nunique() == 3
    assert generated.groupby("item_id")["prompt"].nunique().eq(1).all()
    assert set(generated["stop_reason"]) <= {"eos", "stop_string", "length"}
    assert (generated["n_tokens"] <= 5).all()
    assert generated.loc[generated["stop_reason"] == "length", "n_tokens"].eq(5).all()
    assert (generated["stop_reason"] == "length").any()
    likelihood = sampled.records("clean", "facts", "continuation")
    assert likelihood["stop_reason"].isna().all()
    assert likelihood["sample"].eq(0).all()
    view = sampled.item(str(generated["item_id"].iloc[3]), "facts")
    of_item = view.answers[(view.answers["variant"] == "clean") & (view.answers["protocol"] == "generate")]
    assert of_item["text"].tolist() == generated["text"].tolist()[3:6]


def test_the_summary_is_over_items_with_samples_as_repeats(folder: Path) -> None:
    run = sweep(folder, None, **{**SAMPLED, "tasks": ["arithmetic"], "protocols": ["generate"], "samples": 4}, limit=6)
    summary = run.summary().set_index("variant")
    assert summary["n"].eq(6).all()
    assert summary["samples"].eq(4).all()
    records = run.records("clean")
    names = [dict(metrics).keys() for metrics in records["metrics"]]
    assert all({"pass@1", "maj@4"} <= set(own) for own in names)
    pass_at_1 = np.mean([metrics["pass@1"] for metrics in records["metrics"]])
    assert pass_at_1 == pytest.approx(summary.loc["clean", "accuracy"])
    [effects] = run.effects(component="layer")
    assert effects.differences.shape == (6, 3)


def test_protocols_of_a_sampled_run_are_paired_item_by_item(sampled: lp.Run) -> None:
    gap = sampled.protocol_gap(task="facts")
    assert (gap["n"] == 3).all()
    assert set(gap["protocol_b"]) == {"generate"}
    assert "sample 2" in sampled.report().read_text()


def test_settings_are_in_the_spec_and_a_change_is_refused(folder: Path, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"tasks": ["facts"], "protocols": ["generate"]}
    first = sweep(folder, tmp_path / "run", **asked, max_new_tokens=4, until=["x", "yz"])
    [condition] = first.spec.conditions
    own = lp.load_task("facts").task.formats["generate"].until  # type: ignore[union-attr]
    settings = {"max_new_tokens": 4, "until": [*own, "x", "yz"], "generation_config": "model"}
    assert condition.generation == {**settings, "temperature": 0.0, "samples": 1}
    for changes, said in (
        ({"max_new_tokens": 5, "until": ["x", "yz"]}, r"max_new_tokens 4 there, 5 here"),
        ({"max_new_tokens": 4, "until": ["x"]}, r"until \["),
        ({"max_new_tokens": 4, "until": ["x", "yz"], "generation_config": "none"}, r'"model" there, "none" here'),
        (
            {"max_new_tokens": 4, "until": ["x", "yz"], "temperature": 0.5},
            r"prompts of facts generate: generation, temperature 0.0 there, 0.5 here",
        ),
    ):
        with pytest.raises(UserError, match=said):
            sweep(folder, tmp_path / "run", **asked, **changes)
    again = lp.resume(tmp_path / "run", progress=False)
    assert again.spec.digest == first.spec.digest
    only = sweep(folder, None, **asked, max_new_tokens=4, until=["x"], until_only=True)
    assert only.spec.conditions[0].generation["until"] == ["x"]
    assert set(only.records()["stop_reason"]) == {"length"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protocols": ["default"], "max_new_tokens": 7}, "--max-new-tokens is given, but nothing is generated"),
        ({"protocols": ["continuation"], "temperature": 0.7}, "--temperature is given, but nothing is generated"),
        ({"samples": 4}, "4 samples of task 'facts' would be one text 4 times"),
        ({"top_p": 0.9}, "top-p 0.9 has no effect on greedy decoding of task 'facts'"),
        ({"top_k": 5, "temperature": 0}, "top-k 5 has no effect on greedy decoding"),
        ({"max_new_tokens": 512}, "512 new tokens leave no room for a prompt"),
        ({"max_new_tokens": 480, "shots": 2}, r"3 of 3 prompts of task 'facts' with 480 new tokens exceed the context"),
    ],
)
def test_bad_input_is_refused_in_one_line(folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        sweep(folder, None, **{"tasks": ["facts"], "protocols": ["generate"], **changes})
    assert "\n" not in str(caught.value)


def test_texts_that_run_out_of_tokens_are_cut_off(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = sweep(folder, None, tasks=["arithmetic"], protocols=["generate"], max_new_tokens=2, limit=5)
    clean = run.records("clean")
    cut = clean["failure"] == "cut_off"
    assert cut.any()
    assert clean.loc[cut, "stop_reason"].eq("length").all()
    rate = run.summary().query("variant == 'clean'")["cut_off_rate"].iloc[0]
    assert rate == pytest.approx(cut.mean())
    assert f"{cut.sum()} of 5 texts of the whole model were cut off after 2 new tokens" in caplog.text
    assert "--max-new-tokens" in caplog.text
    assert "of texts cut off without an answer" in run_report(run)
    assert run.plot("failures") is not None
