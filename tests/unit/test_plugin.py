"""A plug-in from outside the package: one row or decorator each, and the main job knows it everywhere."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.axes import Axes

import lensprune as lp
from lensprune.ablation import VariantHooks, collect_reference, components, enumerate_variants, kinds, layer_range
from lensprune.ablation.hooks import BatchState
from lensprune.cli import main
from lensprune.engine import HookedExecutor, executor_info, make_executor, registry
from lensprune.engine.estimates import estimate_logprobs
from lensprune.errors import LensPruneError, UserError
from lensprune.heads import HeadTable, ScoreOptions
from lensprune.heads import registry as head_functions
from lensprune.models.base import HookedModel, ModelFacts
from lensprune.parameters import read_values
from lensprune.protocols import LoglikelihoodRequest, LoglikelihoodResponse, Outcome, Response, score_answer
from lensprune.protocols import registry as protocols
from lensprune.results import analyses, figures
from lensprune.results.text import run_report
from lensprune.runs.outcomes import Outcomes
from lensprune.runs.spec import SweepSpec
from lensprune.runs.variant_json import variant_from_json, variant_to_json
from lensprune.tasks import Rows, Task, task_names
from lensprune.tasks import registry as task_registry
from lensprune.tasks.base import Doc, Item, PromptFormat
from lensprune.tasks.formats import three_protocols, uniform_chance
from tests.helpers.families import FAMILIES
from tests.helpers.made_runs import layers_run
from tests.helpers.tiny_models import generation_requests, likelihood_requests, tiny
from tests.helpers.tolerances import assert_responses_agree, assert_tensors_agree

mpl.use("agg")

TASK = "facts"
LIMIT = 4
EVERY_WAY = ("continuation", "generate", "opposite")


def _half(facts: ModelFacts, half: int) -> range:
    return range(half * facts.d_model // 2, (half + 1) * facts.d_model // 2)


@pytest.fixture(scope="module", autouse=True)
def plugin() -> Iterator[type[lp.Component]]:
    """Everything that the plug-in registers, taken back afterwards."""
    analyses.analyses()
    task_names()
    tables: list[Any] = [
        components._PARTS,
        kinds._KINDS,
        protocols._PROTOCOLS,
        registry._EXECUTORS,
        head_functions._SCORES,
        analyses._ANALYSES,
    ]
    before = [(table, dict(table._rows), dict(table._origins)) for table in tables]
    classes = dict(components._BY_CLASS)
    builders = dict(task_registry._builders)
    globals()["MLPHalf"] = _register()
    yield MLPHalf
    for table, rows, origins in before:
        table._rows.clear()
        table._rows.update(rows)
        table._origins = origins
    task_registry._builders.clear()
    task_registry._builders.update(builders)
    components._BY_CLASS.clear()
    components._BY_CLASS.update(classes)


MLPHalf: Any = None


def _register() -> type[lp.Component]:
    @lp.register_ablation
    def halve(site: lp.AblatedSite) -> torch.Tensor:
        """Half of the activation."""
        return site.activation / 2

    @lp.register_ablation(name="tenth", reads_activation=False)
    def constant(site: lp.AblatedSite) -> torch.Tensor:
        """A tenth everywhere."""
        return site.full(0.1)

    @lp.register_ablation(name="twice-mean", reference="mean", reads_activation=False)
    def twice_mean(site: lp.AblatedSite) -> torch.Tensor:
        """Twice the mean over reference prompts."""
        return 2 * site.reference.mean(site.component.site, site.position_ids)

    @lp.register_part(
        "mlp_half",
        over="mlp-halves",
        slot=lp.Slot.MLP,
        label="L{layer}.mlp{half}",
        size=lambda facts: 2,
        select=_half,
        index_word="MLP half",
        default_ablation="halve",
    )
    @dataclass(frozen=True, order=True)
    class MLPHalf(lp.Component):
        """One half of the dimensions of what an MLP adds to the residual stream."""

        half: int

    @lp.register_protocol(form="continuation", measure="logprob_margin")
    def opposite(fmt: PromptFormat, item: Item, responses: Sequence[Response]) -> Outcome:
        """The least likely option."""
        turned = [replace(r, logprob=-r.logprob) for r in responses if isinstance(r, LoglikelihoodResponse)]
        return score_answer(fmt, item, turned)

    @lp.register_protocol(form="generate")
    def first_word(fmt: PromptFormat, item: Item, responses: Sequence[Response]) -> Outcome:
        """The text's first word, which is never right."""
        return replace(score_answer(fmt, item, responses), prediction="The", correct=False)

    @lp.register_executor("backwards")
    def backwards(model: HookedModel, budget: Any) -> Any:
        """By hooks, the last variant first."""
        return _Backwards(model)

    @lp.register_head_score(range="0 to 1", source="here")
    def place(model: HookedModel, options: ScoreOptions) -> torch.Tensor:
        """Where the head stands, the last one at 1."""
        shape = (model.facts.n_layers, model.facts.n_heads)
        return torch.linspace(0, 1, shape[0] * shape[1]).reshape(shape)

    @lp.register_task
    def sums(largest: int = 5) -> Task:
        """Sums of two numbers."""
        return _sums("sums", largest, lambda doc: "")

    @lp.register_task
    def sums_told(largest: int = 5) -> Task:
        """Sums behind their results."""
        told = _sums("sums_told", largest, lambda doc: f"It is {doc['c']}. ")
        return replace(told, closed_book="sums")

    @lp.register_analysis(
        title="Moved <answers>",
        draw=_bars,
        alt=lambda table: f"Bars: {len(table)} of them",
        columns={"variant": "", "task": "", "protocol": "", "moved": ".3f"},
        saved=True,
    )
    def moved_answers(
        outcomes: Outcomes, task: str | None = None, protocol: str | None = None, *, at_least: float = 0.0
    ) -> pd.DataFrame:
        """How far a variant moves the answer's
        log-probability, in nats."""
        records = outcomes.records(task=task, protocol=protocol).dropna(subset="gold_logprob")
        if records.empty:
            raise UserError("nothing is moved: no answer has a log-probability")
        clean = records[records["variant"] == "clean"]
        both = records.merge(clean, on=["task", "protocol", "item_id"], suffixes=("", "_clean"))
        both["moved"] = (both["gold_logprob"] - both["gold_logprob_clean"]).abs()
        found = both.groupby(["variant", "task", "protocol"], sort=False)["moved"].mean().reset_index()
        return found[(found["variant"] != "clean") & (found["moved"] >= at_least)]

    return MLPHalf


def _sums(name: str, largest: int, told: Callable[[Doc], str]) -> Task:
    def question(doc: Doc) -> str:
        return f"{told(doc)}{doc['a']} + {doc['b']} ="

    def options(doc: Doc) -> list[str]:
        return [str(doc["c"] + i) for i in range(3)]

    docs = [{"a": a, "b": b, "c": a + b} for a in range(largest) for b in range(largest)]
    return Task(
        name=name,
        summary="sums of two numbers",
        kind="reasoning",
        formats=three_protocols(question, options, lambda doc: 0, continuation_context=question),
        chance=uniform_chance(options),
        load=lambda request: Rows(docs, docs, "made here", fewshot_is_evaluated=True),
    )


def _bars(table: pd.DataFrame, spec: SweepSpec) -> Axes:
    _, axes = plt.subplots()
    axes.bar(range(len(table)), table["moved"])
    axes.set_title(spec.model)
    return axes


class _Backwards(HookedExecutor):
    name = "backwards"

    def run(self, requests: Any, variants: Any, **options: Any) -> Any:
        return super().run(requests, list(variants)[::-1], **options)


@pytest.fixture(scope="module")
def folder(family_folder: Callable[[str], Path]) -> Path:
    return family_folder("llama")


def sweep(folder: Path, over: str = "mlp-halves", ablation: str | None = "halve", **changes: Any) -> lp.Run:
    arguments: dict[str, Any] = {
        "tasks": TASK,
        "protocols": EVERY_WAY,
        "variants": lp.VariantSelection(over, ablation),
        "limit": LIMIT,
        "shots": 1,
        "device": "cpu",
        "progress": False,
    }
    return lp.sweep(str(folder), **{**arguments, **changes})


def numbers(run: lp.Run) -> pd.DataFrame:
    columns = ["variant", "task", "protocol", "item_id"]
    return run.records().sort_values(columns).set_index(columns)[["component", "head", "text", "gold_logprob"]]


def assert_same_and_changed(one: lp.Run, other: lp.Run, at_least: float = 1e-3) -> None:
    """The same records within rounding, and some effect under every changed part."""
    a, b = numbers(one), numbers(other)
    assert_tensors_agree(a, b, torch.float32)
    likely = a.xs("continuation", level="protocol")["gold_logprob"].unstack("variant")
    moved = likely.sub(likely["clean"], axis=0).drop(columns="clean").abs().max()
    assert (moved > at_least).all(), moved


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
            lp.Ablation(MLPHalf(1, 1), "zero"),
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
        halves = lp.Variant("halves", tuple(lp.Ablation(MLPHalf(1, i), kind) for i in (0, 1)))
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
    _again(lambda: lp.register_head_score(range="any", name="induction")(flat), "'induction' is taken by lensprune")


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

    _again(lambda: lp.register_analysis(needs), "analysis 'needs': option 'k' needs a default value")
    _again(
        lambda: lp.register_analysis(name="depth")(lambda outcomes: pd.DataFrame()),
        r"analysis name 'depth' is taken by lensprune\.",
    )
    _again(lambda: lp.register_analysis(name="a b")(lambda outcomes: pd.DataFrame()), "start with a letter")
    one = analyses.Analysis("one", "One", "", lambda outcomes: pd.DataFrame({"a": [1]}), columns={"b": "d"})
    run = layers_run(n=2, n_layers=1)
    with pytest.raises(LensPruneError, match="the table of analysis 'one' lacks the column 'b'"):
        one.table(run)
    with pytest.raises(UserError, match="analysis 'one' has no figure"):
        replace(one, columns={}).figure(run)


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


def test_a_folder_begun_with_another_definition_is_refused(folder: Path, tmp_path: Path) -> None:
    [variant] = lp.VariantSelection("mlp-halves", layers="1", heads="0").resolve(tiny("llama").facts)
    data = variant_to_json(variant)
    assert variant_from_json(data) == variant
    assert len(data["ablations"][0]["definition"]) == 64
    row = kinds._KINDS._rows["halve"]
    kinds._KINDS._rows["halve"] = replace(row, value=lambda site: site.activation / 3)
    try:
        assert variant_to_json(variant)["ablations"][0]["definition"] != data["ablations"][0]["definition"]
    finally:
        kinds._KINDS._rows["halve"] = row
    assert variant_to_json(variant) == data
    assert "definition" not in variant_to_json(lp.each_layer(tiny("llama"))[0])["ablations"][0]


def test_what_does_not_fit_is_refused() -> None:
    model = tiny("llama")
    requests = likelihood_requests(model)[:2]
    with pytest.raises(UserError, match=r"MLP half 2 of L1.mlp2 is out of range"):
        list(make_executor("forked", model).run(requests, [lp.Variant("x", (lp.Ablation(MLPHalf(1, 2), "zero"),))]))
    with pytest.raises(UserError, match="twice-mean needs reference activations"):
        list(HookedExecutor(model).run(requests, lp.each_mlp(model, "twice-mean", [0])))

    @lp.register_ablation(reads_activation=False)
    def liar(site: lp.AblatedSite) -> torch.Tensor:
        return site.activation

    @lp.register_ablation
    def flat(site: lp.AblatedSite) -> torch.Tensor:
        return site.activation.sum(-1)

    for executor in ("hooked", "forked"):
        with pytest.raises(LensPruneError, match=r"L0: its ablation reads the activation"):
            list(make_executor(executor, model).run(requests, lp.each_layer(model, "liar", [0])))
        with pytest.raises(LensPruneError, match=r"flat gives a value of shape"):
            list(make_executor(executor, model).run(requests, lp.each_mlp(model, "flat", [0])))


@dataclass(frozen=True, order=True)
class Unregistered(lp.Component):
    pass


@pytest.mark.parametrize("executor", ["hooked", "forked"])
def test_an_unknown_part_or_kind_is_refused_never_dropped(executor: str) -> None:
    model = tiny("llama")
    requests = likelihood_requests(model)[:2]
    with pytest.raises(UserError, match="not a component that can be ablated"):
        lp.Ablation(Unregistered(1), "zero")
    with pytest.raises(UserError, match=r"unknown ablation 'hlave': did you mean halve"):
        lp.Ablation(lp.MLP(1), "hlave")
    for component, kind in ((Unregistered(1), "zero"), (lp.MLP(1), "hlave")):
        # Past the checks of the constructor, as a copy from another process comes.
        ablation = object.__new__(lp.Ablation)
        object.__setattr__(ablation, "component", component)
        object.__setattr__(ablation, "kind", kind)
        with pytest.raises(UserError, match=r"not a component|unknown ablation"):
            list(make_executor(executor, model).run(requests, [lp.Variant("x", (ablation,))]))


def test_the_fast_path_itself_refuses_an_unknown_part() -> None:
    from lensprune.engine.edits import ALL, edits_by_layer

    model = tiny("llama")
    ablation = object.__new__(lp.Ablation)
    object.__setattr__(ablation, "component", Unregistered(1))
    object.__setattr__(ablation, "kind", "zero")
    with pytest.raises(UserError, match="not a component that can be ablated"):
        edits_by_layer([(lp.Variant("x", (ablation,)), ALL)], None, model.facts)


def _again(register: Callable[[], object], match: str) -> None:
    with pytest.raises(UserError, match=match):
        register()


def test_names_that_are_taken_are_refused() -> None:
    @dataclass(frozen=True, order=True)
    class Other(lp.Component):
        pass

    def zero(site: lp.AblatedSite) -> torch.Tensor:
        return site.full(0)

    def halve(site: lp.AblatedSite) -> torch.Tensor:
        return site.activation / 3

    part: Any = lp.register_part
    slot = lp.Slot.MLP
    _again(lambda: lp.register_ablation(zero), r"ablation name 'zero' is taken by lensprune\.")
    _again(lambda: lp.register_ablation(halve), r"ablation name 'halve' is taken by tests\.")
    _again(lambda: part("mlp", over="x", slot=slot, label="x")(Other), r"component name 'mlp' is taken by lensprune\.")
    _again(lambda: part("other", over="mlp", slot=slot, label="x")(Other), r"over 'mlp' is the part 'mlp' already")
    _again(lambda: part("other", over="heads-and-groups", slot=slot, label="x")(Other), r"is heads and groups already")
    _again(lambda: part("o", over="o", slot=slot, label="x", size=lambda facts: 2)(Other), r"fields layer: expected")
    _again(lambda: part("a b", over="o", slot=slot, label="x")(Other), r"component name 'a b': start with a letter")
    score: Any = lambda fmt, item, responses: None  # noqa: E731
    _again(lambda: lp.register_protocol(name="generate")(score), r"protocol name 'generate' is taken by lensprune\.")
    _again(lambda: lp.register_protocol(name="x", measure="loss")(score), r"unknown measure 'loss'")
    _again(lambda: lp.register_executor("hooked")(score), r"executor name 'hooked' is taken by lensprune\.")
    _again(lambda: lp.register_executor("ray")(score), "executor name 'ray' is reserved")
    assert executor_info("hooked").shares_work is False
    assert kinds.ablation_kind("zero").value is None


def test_estimates_towards_an_own_value() -> None:
    """Halving z changes it half as far as zeroing it, so attribution patching says half as much."""
    model = tiny("llama")
    requests = [r for r in likelihood_requests(model) if isinstance(r, LoglikelihoodRequest)]
    half, whole = (estimate_logprobs(model, requests, lp.each_head(model, kind))[1] for kind in ("halve", "zero"))
    assert whole.abs().max() > 1e-4
    assert_tensors_agree(half, whole / 2, torch.float32)


def test_the_example_of_the_documentation(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "plugins.md").read_text(encoding="utf-8")
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
