"""A screened sweep measures what it chose as any sweep would, says what is only estimated, and resumes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import lensprune as lp
from lensprune.ablation.enumeration import each_head, each_layer
from lensprune.analysis.screening import screen_quality, screen_table
from lensprune.cli import main
from lensprune.engine.estimates import estimate_logprobs
from lensprune.engine.gradient_rules import GRADIENT_RULES
from lensprune.engine.registry import make_executor
from lensprune.errors import UserError
from lensprune.protocols.requests import LoglikelihoodRequest
from lensprune.results.concentration import NOT_OF_ALL_HEADS
from lensprune.results.text import run_report
from lensprune.runs.cell_store import MemoryStore
from lensprune.runs.records import CellKey
from lensprune.runs.spec import SweepSpec
from lensprune.sweeps.options import SweepOptions
from lensprune.sweeps.prepare import prepare
from lensprune.sweeps.screening import best_ranks, choose, estimated_effects, screened_count
from lensprune.sweeps.selection import VariantSelection
from tests.helpers.families import save_folder
from tests.helpers.made_cells import outcomes_of, table
from tests.helpers.sweeps import sweep as tiny_sweep
from tests.helpers.tiny_models import tiny
from tests.helpers.tolerances import assert_records_agree, assert_tensors_agree, size_of

TASKS, PROTOCOLS = ["facts", "kv_retrieval[pairs=2]"], ["continuation", "generate"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_folder("llama", tmp_path_factory.mktemp("model"), num_hidden_layers=8)


sweep = partial(
    tiny_sweep, tasks=TASKS, protocols=PROTOCOLS, variants=VariantSelection("heads"), limit=4, shots=1, screen=0.1
)


@pytest.fixture(scope="module")
def screened(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> lp.Run:
    return sweep(folder, out=tmp_path_factory.mktemp("runs") / "screened")


@pytest.mark.slow
def test_measured_cells_are_those_of_a_whole_sweep(folder: Path, screened: lp.Run) -> None:
    whole = sweep(folder, screen=None)
    names = screened.spec.variant_names
    assert names[0] == "clean"
    assert 14 <= len(names) - 1 < 32
    mine, theirs = screened.records(), whole.records()
    theirs = theirs[theirs["variant"].isin(names)].reset_index(drop=True)
    assert_records_agree(mine, theirs, torch.float32, at_most=1e-4)


def test_table_says_what_is_measured(screened: lp.Run) -> None:
    found = screened.screen()
    assert len(found) == 32 * 4
    for _, own in found.groupby(["task", "protocol"]):
        assert sorted(own["rank"]) == list(range(1, 33))
        assert (own.sort_values("rank")["estimate"].diff().dropna() >= 0).all()
        strongest = own[own["status"] == "measured: strongest"]
        assert sorted(strongest["rank"]) == [1, 2, 3, 4, 5, 6]
        assert (own["status"] == "measured: control").sum() + (strongest["status"] != "").sum() <= 32
        estimated = own[own["status"] == "estimated"]
        assert estimated[["delta", "logprob_margin_change"]].isna().all().all()
        assert set(estimated["variant"]).isdisjoint(screened.spec.variant_names)
    measured = found[found["status"] != "estimated"]
    assert measured["delta"].notna().all()
    summary = screened.summary().set_index(["task", "protocol", "variant"])["delta"]
    for row in measured.itertuples():
        assert row.delta == pytest.approx(summary[row.task, row.protocol, row.variant])
    assert (measured["logprob_margin_change"].isna() == (measured["protocol"] == "generate")).all()


def test_estimates_are_the_margins_first_order_change(folder: Path, screened: lp.Run) -> None:
    options = SweepOptions(
        tasks=("facts",),
        protocols=("continuation",),
        variants=VariantSelection("heads"),
        limit=4,
        shots=1,
        device="cpu",
    )
    job = prepare(str(folder), options)
    [condition] = job.conditions
    heads = each_head(job.model)
    requests = [r for r in condition.requests if isinstance(r, LoglikelihoodRequest)]
    clean, change = estimate_logprobs(job.model, requests, heads)
    before, after = clean.view(4, -1), (clean + change).view(len(heads), 4, -1)
    form: Any = condition.task.task.formats["continuation"]
    golds = [form.gold(item.item.doc) for item in condition.items]

    # The best other option in the whole model, whichever is best without a head.
    rivals = [
        max((i for i in range(before.shape[1]) if i != gold), key=lambda i, row=row: float(row[i]))
        for row, gold in zip(before, golds, strict=True)
    ]

    def margins(logprobs: Any) -> np.ndarray:
        items = range(len(golds))
        return (logprobs[items, golds] - logprobs[items, rivals]).numpy()

    base = margins(before)
    expected = {h.name: float((margins(a) - base).mean()) for h, a in zip(heads, after, strict=True)}
    found = screened.screen()
    found = found[(found["task"] == "facts") & (found["protocol"] == "continuation")].set_index("variant")["estimate"]
    assert sorted(found.index) == sorted(expected)
    wanted = [expected[name] for name in found.index]
    # Differences of log-probabilities; estimates alone lie closer together.
    assert_tensors_agree(found, wanted, torch.float32, size=size_of(before), at_most=1e-5)


def test_any_takes_the_best_rank_under_three_rules(folder: Path) -> None:
    """Twice the requested heads, in the order of their best ranks; each estimate is by the rule that ranks it best."""
    run = sweep(folder, tasks=["facts"], protocols=["continuation"], screen_rule="any")
    found = run.screen().sort_values("rank")
    options = SweepOptions.given("facts", "continuation", VariantSelection("heads"), limit=4, shots=1, device="cpu")
    job = prepare(str(folder), options)
    [condition], heads, executor = job.conditions, each_head(job.model), make_executor("forked", job.model)
    by_rule = [estimated_effects(job.model, condition, heads, executor, rule=rule) for rule in GRADIENT_RULES]
    order = [heads[i].name for i in np.argsort(best_ranks(by_rule), kind="stable")]
    assert found["variant"].tolist() == order
    assert order != [heads[i].name for i in np.argsort(by_rule[0], kind="stable")]
    places = np.array([np.argsort(np.argsort(estimates)) for estimates in by_rule])
    best = {head.name: by_rule[places[:, i].argmin()][i] for i, head in enumerate(heads)}
    assert dict(zip(found["variant"], found["estimate"], strict=True)) == pytest.approx(best)
    assert (found["status"] == "measured: strongest").sum() == 8
    assert len(run.spec.variants) - 1 == screened_count(32, 0.1, "any") == 16
    assert run.spec.screen is not None
    assert (run.spec.screen["rule"], run.spec.screen["top"]) == ("any", 4)


def test_an_estimate_that_is_not_finite_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def overflown(*args: Any, **options: Any) -> tuple[np.ndarray, np.ndarray]:
        return np.ones(4), np.array([-1.0, np.inf, *[-0.5] * 30])

    monkeypatch.setattr("lensprune.sweeps.screening.estimate_measure", overflown)
    with pytest.raises(UserError, match=r"rule plain gives L0\.H1\.zero no finite estimate, .* in float32: use"):
        sweep(folder, tasks=["facts"], protocols=["continuation"])


def test_best_ranks_by_hand() -> None:
    """Ranks 1 2 3 4 and 4 2 1 3: the best are 1 2 1 3, and the first and third have mean ranks of 2.5 and 2."""
    assert best_ranks([np.array([-4.0, -3, -2, -1]), np.array([0.0, -2, -3, -1])]).argsort().tolist() == [2, 0, 1, 3]


@pytest.mark.slow
def test_goes_on_where_it_stopped_without_estimating_again(
    folder: Path, screened: lp.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = sweep(folder, out=tmp_path / "run")
    assert run.spec.digest == screened.spec.digest
    assert run.folder is not None
    before = run.records()
    for path in sorted((run.folder / "records").glob("*.parquet"))[::3]:
        path.unlink()

    def never(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("estimated again")

    monkeypatch.setattr("lensprune.sweeps.screening.estimate_measure", never)
    pd.testing.assert_frame_equal(lp.resume(run.folder, progress=False).records(), before)
    next((run.folder / "records").glob("*.parquet")).unlink()
    pd.testing.assert_frame_equal(sweep(folder, out=run.folder).records(), before)
    monkeypatch.undo()
    for changes in ({"screen": 0.5}, {"screen_rule": "gim"}):
        with pytest.raises(UserError, match="contains another run"):
            sweep(folder, out=run.folder, **changes)
    assert SweepSpec.from_json(run.spec.to_json()) == run.spec


def test_command_prints_and_saves_the_table(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    arguments = f"sweep --model {folder} --task facts --protocol continuation --over kv-groups --limit 3 --shots 0"
    assert main([*arguments.split(), "--screen", "0.1", "--memory", "1GB", "--device", "cpu", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "11 of 16 heads are measured: 3 chosen by their estimates and 8 drawn at random" in shown
    assert len(pd.read_csv(out / "screen.csv")) == 16
    assert lp.Run.load(out).spec.execution.memory == "1GB"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"screen": 1.5}, "screen 1.5 is not a share of the heads"),
        ({"variants": VariantSelection("layers")}, "screen can't rank layers: measuring a third"),
        ({"variants": VariantSelection("mlp")}, "screen can't rank mlp: measuring a third"),
        ({"variants": each_layer(tiny("llama"))}, "screen can't rank layers"),
        ({"variants": VariantSelection("heads", "optimal")}, "screen saves nothing with ablation optimal"),
        ({"executor": "ray"}, "a screened sweep runs in one process"),
        ({"memory": "much"}, "cannot read an amount of memory from 'much'"),
    ],
)
def test_refusals(folder: Path, changes: dict[str, Any], message: str) -> None:
    arguments = {"variants": VariantSelection("heads"), "screen": 0.1, **changes}
    with pytest.raises(UserError, match=message):
        lp.sweep(str(folder), TASKS, PROTOCOLS, progress=False, device="cpu", **arguments)


def test_a_screened_run_says_nothing_of_all_heads(screened: lp.Run) -> None:
    for ask in (screened.concentration, screened.overlap):
        with pytest.raises(UserError, match="this run is screened"):
            ask()
    assert screened.folder is not None
    assert (screened.folder / "summary.csv").is_file()
    assert not list(screened.folder.glob("concentration*"))
    assert NOT_OF_ALL_HEADS in run_report(screened)


def test_choice_and_quality_by_hand() -> None:
    heads = each_head(replace(tiny("llama").facts, n_layers=8), "zero")
    assert len(heads) == 32
    place = {"task": "t", "protocol": "default"}
    rows = [
        {**place, "variant": h.name, "layer": h.layer, "head": h.head, "estimate": float(i), "rank": i + 1}
        for i, h in enumerate(heads)
    ]
    chosen, why = choose(heads, rows, 0.1, seed=0)
    assert len(chosen) == screened_count(32, 0.1) == 14
    assert [name for name, reason in why.items() if reason == "strongest"] == [h.name for h in heads[:6]]
    assert choose(heads, rows, 0.1, seed=0)[1] == why
    assert choose(heads, rows, 0.1, seed=1)[1] != why
    # One control loses more than any other head: one in eight, so 18 / 8 of the unmeasured ones may do so too.
    control = next(name for name, reason in why.items() if reason == "control")
    store = MemoryStore()
    measured = {h.name: 10.0 if h.name == control else 4.0 - i for i, h in enumerate(chosen)}
    for variant in (lp.CLEAN, *chosen):
        logprob_margin = 0.0 if variant.is_clean else -measured[variant.name]
        store.write(CellKey(variant.name, "t", "default"), table(variant, [True] * 4, logprob_margin=logprob_margin))
    screen = {"estimates": rows, "measured": why, "top": 4, "reach": 6, "component": "head", "fraction": 0.1}
    outcomes = outcomes_of(store, ["clean", *(variant.name for variant in chosen)], screen=screen)
    found = screen_table(outcomes)
    assert found.set_index("variant")["logprob_margin_change"][control] == pytest.approx(-10.0)
    [quality] = screen_quality(outcomes).to_dict("records")
    assert (quality["measured"], quality["controls"], quality["top"]) == (14, 8, 4)
    assert quality["controls_in_top"] == 1
    assert quality["expected_missed"] == pytest.approx(18 / 8)
