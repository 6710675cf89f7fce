"""Parts, ablations, protocols and executors of a plug-in: sweeps, plans, records and commands have them."""

from __future__ import annotations

import importlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.axes import Axes

import lensprune as lp
from lensprune.ablation import VariantHooks, collect_reference, components, enumerate_variants, layer_range
from lensprune.ablation.hooks import BatchState
from lensprune.cli import main
from lensprune.engine import HookedExecutor, make_executor
from lensprune.engine.estimates import estimate_logprobs
from lensprune.errors import LensPruneError, UserError
from lensprune.heads import HeadTable, ScoreOptions
from lensprune.models.base import HookedModel
from lensprune.protocols import LoglikelihoodRequest, LoglikelihoodResponse
from lensprune.protocols import registry as protocols
from lensprune.terminal import WorkBar
from tests.helpers.families import FAMILIES
from tests.helpers.plugin import LIMIT, TASK, Backwards, assert_same_and_changed, numbers, refused, sweep
from tests.helpers.tiny_models import generation_requests, likelihood_requests, tiny
from tests.helpers.tolerances import assert_responses_agree, assert_tensors_agree


def mlp_half(layer: int, half: int) -> lp.Component:
    make: Any = components.part_named("mlp_half").component
    component: lp.Component = make(layer, half)
    return component


@pytest.mark.slow
def test_own_kinds_give_the_same_numbers_in_both_executors(folder: Path) -> None:
    facts = tiny("llama").facts
    overs = ("layers", "attention", "mlp", "heads", "kv-groups", "mlp-halves")
    variants = [
        variant
        for over in overs
        for kind in ("halve", "tenth", "twice-mean")
        for variant in enumerate_variants(facts, over, kind, layers=[1])
    ]
    assert len({(v.component, v.ablation) for v in variants}) == len(overs) * 3
    ways = ("continuation", "generate")
    hooked, forked = (
        sweep(folder, variants=variants, protocols=ways, executor=executor) for executor in ("hooked", "forked")
    )
    assert_same_and_changed(hooked, forked, at_least=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_kind_that_reads_the_activation_on_every_family(family: str) -> None:
    model = tiny(family)
    whole, half = lp.each_layer(model, "halve"), layer_range(model, 0, 1, "halve")
    mixed = lp.Variant(
        "mixed",
        (
            lp.Ablation(lp.Layer(0), "halve"),
            lp.Ablation(mlp_half(1, 1), "zero"),
            lp.Ablation(lp.Head(1, 0), "halve"),
            lp.Ablation(lp.Layer(2), "skip"),
        ),
    )
    skipped = lp.each_layer(model, "skip", [1])
    variants = [lp.Variant("clean"), *whole, half, mixed, *skipped]
    requests = [*likelihood_requests(model), *generation_requests(model)]
    slow = list(HookedExecutor(model).run(requests, variants))
    fast = list(make_executor("forked", model).run(requests, variants))
    assert_responses_agree(model, requests, fast, slow)
    clean = np.array([r.logprob for r in slow[0].responses if isinstance(r, LoglikelihoodResponse)])
    for answered in slow[1:]:
        changed = np.array([r.logprob for r in answered.responses if isinstance(r, LoglikelihoodResponse)])
        assert np.abs(changed - clean).max() > 1e-4, answered.variant.name


def test_two_halves_make_up_the_whole() -> None:
    model = tiny("llama")
    requests = likelihood_requests(model)
    for kind in ("zero", "halve"):
        halves = lp.Variant("halves", tuple(lp.Ablation(mlp_half(1, i), kind) for i in (0, 1)))
        [whole] = lp.each_mlp(model, kind, [1])
        for executor in ("hooked", "forked"):
            a, b, clean = make_executor(executor, model).run(requests, [halves, whole, lp.Variant("clean")])
            found, expected, unchanged = ([r.logprob for r in x.responses] for x in (a, b, clean))  # type: ignore
            # Equal values are put into the same arithmetic.
            assert_tensors_agree(found, expected, torch.float32, at_most=1e-5)
            assert np.abs(np.subtract(expected, unchanged)).max() > 1e-3


def test_records_and_summary_name_the_part(folder: Path) -> None:
    run = sweep(folder)
    summary = run.summary()
    part = summary[summary["component"] == "mlp_half"]
    assert set(part["ablation"]) == {"halve"}
    assert set(zip(part["layer"], part["head"], strict=True)) == {
        (layer, half) for layer in (0, 1, 2) for half in (0, 1)
    }
    assert "L2.mlp1.halve" in set(part["variant"])
    assert run.effects(TASK, "continuation", component="mlp_half", measure="logprob_margin")[0].effects.any()


def test_own_protocol_scores_as_it_says(folder: Path) -> None:
    run = sweep(folder)
    by_protocol = numbers(run)["gold_logprob"].unstack("protocol")
    assert by_protocol["continuation"].abs().min() > 1
    np.testing.assert_allclose(by_protocol["opposite"], -by_protocol["continuation"])
    chance = run.records().groupby("protocol")["chance"].first()
    assert chance["opposite"] == chance["continuation"] > 0
    assert "opposite" in set(run.summary()["protocol"])
    task = lp.get_task(TASK)
    only_generate = replace(task, formats={"generate": task.formats["generate"]})
    with pytest.raises(UserError, match=r"unknown protocol of task 'facts' 'opposite'.*generate"):
        protocols.protocol_named("opposite").format_of(only_generate)


@pytest.mark.slow
def test_own_executor_runs_and_is_named(folder: Path, tmp_path: Path) -> None:
    run = sweep(folder, executor="backwards", out=tmp_path / "run")
    assert run.spec.execution.executor == "backwards"
    assert_same_and_changed(run, sweep(folder))
    assert lp.resume(tmp_path / "run", progress=False).spec.execution.executor == "backwards"


@pytest.mark.slow
def test_progress_of_an_own_executor_is_by_answers_or_by_what_it_reports(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reporting(self: Any, requests: Any, variants: Any, *, on_work: Any = None, **options: Any) -> Any:
        return super(Backwards, self).run(requests, variants, on_work=on_work, **options)

    def progress() -> list[float]:
        works: list[float] = []
        with monkeypatch.context() as patched:
            patched.setattr(WorkBar, "done", lambda self, work, kind: works.append(work))
            sweep(folder, protocols="generate", executor="backwards", progress=True)
        return works

    by_answers = progress()
    monkeypatch.setattr(Backwards, "run", reporting)
    reported = progress()
    assert sum(reported) == pytest.approx(sum(by_answers))
    assert 0 < min(reported) < min(by_answers)


def test_plan_counts_them(folder: Path) -> None:
    options: dict[str, Any] = {"limit": LIMIT, "shots": 1, "device": "cpu", "flops": 1e12}

    def planned(over: str, ablation: str | None, executor: str = "forked") -> lp.Plan:
        return lp.plan(str(folder), TASK, "opposite", lp.VariantSelection(over, ablation), executor=executor, **options)

    halves = planned("mlp-halves", None)
    assert halves.n_variants == 1 + 2 * 3
    # A skipped layer need not run, one that is halved has to.
    skipped, halved = planned("layers", "skip"), planned("layers", "halve")
    assert planned("layers", "tenth").shared == skipped.shared
    assert halved.shared.flops > skipped.shared.flops > 0
    assert halved.unshared == skipped.unshared
    backwards = planned("mlp-halves", None, "backwards")
    assert backwards.cost == backwards.unshared == planned("mlp-halves", None, "hooked").cost
    assert backwards.cost.flops > halves.cost.flops


@pytest.mark.slow
def test_command_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["sweep", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for word in ("mlp-halves", "halve", "tenth", "twice-mean", "opposite", "backwards"):
        assert word in shown
    out = tmp_path / "run"
    shared = ["--model", str(folder), "--task", TASK, "--protocol", "opposite", "--limit", "2", "--shots", "1"]
    own = ["--over", "mlp-halves", "--layers", "1", "--heads", "1", "--ablation", "halve", "--executor", "backwards"]
    assert main(["plan", *shared, *own, "--flops", "1e12"]) == 0
    assert "backwards" in capsys.readouterr().out
    assert main(["sweep", *shared, *own, "--out", str(out), "--device", "cpu"]) == 0
    assert "1 variant, facts, opposite" in capsys.readouterr().out
    assert "L1.mlp1.halve,mlp_half,1,1,halve,facts,opposite" in (out / "summary.csv").read_text()
    assert main(["report", str(out)]) == 0
    assert "L1.mlp1.halve" in (out / "report.html").read_text()
    assert list(lp.Run.load(out).spec.variant_names) == ["clean", "L1.mlp1.halve"]
    assert main(["tasks"]) == 0
    assert "opposite" in capsys.readouterr().out
    assert main(["sweep", *shared, "--over", "mlp-halves", "--ablation", "skip"]) == 2
    assert "use zero, mean, resample, optimal, halve, tenth or twice-mean" in capsys.readouterr().err


def test_own_head_function(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["heads", "--model", str(folder), "--score", "place", "--top", "1", "--out", str(tmp_path)]) == 0
    assert "L2.H3 1.00" in capsys.readouterr().out
    scores = lp.head_scores(tiny("llama"), "place")
    assert scores["value"].tolist() == pytest.approx(np.linspace(0, 1, 12))
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "heads.csv"), scores)
    assert (tmp_path / "figures" / "heads.png").is_file()
    axes = HeadTable(scores).plot(score="place")
    assert isinstance(axes, Axes)
    assert axes.collections[0].get_clim() == (0, 1)
    plt.close("all")
    assert main(["heads", "--model", str(folder), "--score", "plase"]) == 2
    assert "unknown head score 'plase': did you mean place" in capsys.readouterr().err

    @lp.register_head_score(range="any")
    def flat(model: HookedModel, options: ScoreOptions) -> torch.Tensor:
        return torch.zeros(3)

    with pytest.raises(LensPruneError, match=r"head score flat has shape \[3\]: expected \[3, 4\]"):
        lp.head_scores(tiny("llama"), "flat")
    refused(lambda: lp.register_head_score(range="any", name="induction")(flat), "'induction' is taken by lensprune")


READ_ELSEWHERE = """
import sys, pathlib, lensprune as lp
run = lp.Run.load(sys.argv[1])
run.report()
print(len(run.summary()))
lp.resume(sys.argv[1])
next((pathlib.Path(sys.argv[1]) / "records").glob("*.parquet")).unlink()
try:
    lp.resume(sys.argv[1])
except lp.UserError as error:
    print(error)
"""


@pytest.mark.slow
def test_a_run_is_read_where_the_plugin_is_not(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    sweep(folder, protocols="opposite", variants=lp.VariantSelection("mlp-halves", layers="1"), out=out)
    command = [sys.executable, "-c", READ_ELSEWHERE, str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    n_rows, refusal = done.stdout.splitlines()
    assert int(n_rows) == 3
    assert refusal.startswith("unknown component 'mlp_half'")


def test_estimates_towards_an_own_value() -> None:
    """Halving z changes it half as far as zeroing it, so attribution patching says half as much."""
    model = tiny("llama")
    requests = [r for r in likelihood_requests(model) if isinstance(r, LoglikelihoodRequest)]
    half, whole = (estimate_logprobs(model, requests, lp.each_head(model, kind))[1] for kind in ("halve", "zero"))
    assert whole.abs().max() > 1e-4
    assert_tensors_agree(half, whole / 2, torch.float32)


def test_the_example_of_the_documentation(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[3] / "docs" / "how-to" / "plugins.md").read_text(encoding="utf-8")
    example = page.partition("```python\n")[2].partition("```")[0]
    (tmp_path / "plugin_of_the_page.py").write_text(example, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("plugin_of_the_page")
    model = tiny("llama")
    requests = likelihood_requests(model)
    variants = enumerate_variants(model, "attention-halves", "double", layers=[1])
    reference = collect_reference(model, [[10, 11, 12]], lp.each_layer(model, "minus_mean", [0]))
    variants += lp.each_layer(model, "minus_mean", [0])
    slow, fast = (
        {
            answered.variant.name: [r.logprob for r in answered.responses if isinstance(r, LoglikelihoodResponse)]
            for answered in make_executor(name, model).run(
                requests, [lp.Variant("clean"), *variants], reference=reference
            )
        }
        for name in ("small-batches", "forked")
    )
    assert list(slow) == ["clean", "L1.attn0.double", "L1.attn1.double", "L0.minus_mean"]
    for name, logprobs in slow.items():
        assert_tensors_agree(fast[name], logprobs, torch.float32)
        assert name == "clean" or np.abs(np.subtract(logprobs, slow["clean"])).max() > 1e-3
    assert protocols.protocol_named("per_character").form == "continuation"
    run = sweep(folder, "attention-halves", "double", tasks="parity[numbers=10]", protocols="per_character", shots=0)
    assert run.spec.tasks[0].kind == "reasoning"
    assert len(run.changed_answers(at_least=0)) == 2 * 3
    assert isinstance(run.plot("changed_answers", at_least=0), Axes)
    plt.close("all")
    weights = lp.head_scores(model, "output_weight")
    assert weights.groupby("layer")["value"].sum().tolist() == pytest.approx([1, 1, 1])


def test_hooks_of_a_part_fire() -> None:
    model = tiny("llama")
    [variant] = lp.VariantSelection("mlp-halves", layers="0", heads="1").resolve(model.facts)
    hooks = VariantHooks(model, variant, BatchState(torch.arange(3)[None]))
    assert [name for name, _ in hooks.named] == ["blocks.0.hook_mlp_out"]
    before = torch.ones(1, 3, model.facts.d_model)
    after = hooks.named[0][1](before, None)
    assert after is not None
    half = model.facts.d_model // 2
    assert (after[..., :half] == 1).all()
    assert (after[..., half:] == 0.5).all()


def test_a_protocol_that_generates_has_what_generate_has(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What decides is what is asked of the model, not the protocol's name."""
    with caplog.at_level("WARNING", "lensprune"):
        own = sweep(folder, protocols="first_word")
    assert [m for m in caplog.messages if m.startswith(f"task {TASK!r}, first_word: 'The' is extracted from 4 of")]
    assert own.spec.decoding == sweep(folder, protocols="generate").spec.decoding != {}
    assert sweep(folder, protocols="continuation").spec.decoding == {}
