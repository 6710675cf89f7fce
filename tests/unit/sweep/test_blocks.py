"""Sweeps that stop early, against a run of all items: the same records and the verdicts worked out from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes

import lensprune as lp
from lensprune.analysis.decisions import decided, next_block
from lensprune.analysis.intervals import mean_intervals
from lensprune.analysis.multiplicity import benjamini_hochberg
from lensprune.analysis.sequential import Looks, e_bh, e_values, loss_p
from lensprune.analysis.summary import read_group, summarise
from lensprune.errors import UserError
from lensprune.results.figures.depth import delta_by_depth
from lensprune.results.figures.variants import variant_bars
from lensprune.results.listing import runs_in
from lensprune.results.text import top_variants
from lensprune.runs.cell_store import MemoryStore
from lensprune.runs.outcomes import Outcomes
from lensprune.runs.records import CellKey
from lensprune.runs.spec import SweepSpec
from lensprune.runs.store import RunStore
from lensprune.sweeps.distributed import measure_on_workers
from lensprune.sweeps.options import SweepOptions
from lensprune.sweeps.scheduler import Scheduler, WorkerLost
from lensprune.sweeps.selection import VariantSelection
from lensprune.sweeps.units import Unit
from lensprune.sweeps.worker import CellWorker, WorkerUpdate
from tests.helpers.made_runs import layers_run
from tests.helpers.sweeps import sweep
from tests.helpers.tiny_models import folder

TASK, PROTOCOL = "arithmetic", "continuation"
LOOKS = (20, 40, 80)
HEADS = VariantSelection("heads", "zero")
ASKED: dict[str, Any] = {"tasks": TASK, "protocols": PROTOCOL, "variants": HEADS, "limit": None}
EARLY: dict[str, Any] = {**ASKED, "lost_more_than": 0.02, "looks": "20,40,80"}


@pytest.fixture(scope="module")
def model() -> Path:
    return folder("llama")


@pytest.fixture(scope="module")
def whole(model: Path) -> lp.Run:
    return sweep(model, **{**ASKED, "limit": LOOKS[-1]})


@pytest.fixture(scope="module")
def early(model: Path) -> lp.Run:
    return sweep(model, **EARLY)


def changes_of(run: lp.Run) -> pd.DataFrame:
    """Item × variant: outcome minus the clean one, in the order in which items were asked."""
    records = run.records()
    order = records.loc[records["variant"] == "clean", "item_id"]
    right = records.pivot(index="item_id", columns="variant", values="correct").loc[order].astype(float)
    return right.drop(columns="clean").sub(right["clean"], axis=0)


def asked_by_hand(changes: pd.DataFrame) -> tuple[dict[str, int], dict[str, bool]]:
    """Items and verdict of each variant."""
    looks, going = Looks(LOOKS, 0.02), np.ones(changes.shape[1], bool)
    rows, asked, named = [], np.zeros(changes.shape[1], int), going & False
    for n in LOOKS:
        asked[going] = n
        own = changes.to_numpy()[:n]
        rows.append(np.where(going, loss_p((own < 0).sum(axis=0), (own > 0).sum(axis=0), n, 0.02), np.nan))
        named, further = looks.verdicts(np.stack(rows))
        going = going & further
        if not going.any():
            break
    return dict(zip(changes.columns, asked.tolist(), strict=True)), dict(
        zip(changes.columns, named.tolist(), strict=True)
    )


def test_every_variant_is_asked_as_many_items_as_its_verdict_takes(whole: lp.Run, early: lp.Run) -> None:
    asked, named = asked_by_hand(changes_of(whole))
    assert len(set(asked.values())) > 1, "some stop and some go on"
    summary = early.summary().set_index("variant")
    assert summary["n"].drop("clean").to_dict() == asked
    assert (summary["q_loss"].drop("clean") <= 0.05).to_dict() == named
    assert summary.loc["clean", "n"] == LOOKS[-1], "the clean model is judged on all items"
    full = whole.records().set_index(["variant", "item_id"])
    records = early.records()
    for name, rows in records.groupby("variant"):
        ids = whole.records(str(name))["item_id"].tolist()
        assert rows["item_id"].tolist() == ids[: len(rows)]
        expected = full.loc[[(name, item) for item in ids[: len(rows)]], "gold_logprob"]
        assert rows["gold_logprob"].to_numpy() == pytest.approx(expected.to_numpy(), abs=1e-5)


def test_the_clean_model_is_compared_on_the_same_items(whole: lp.Run, early: lp.Run) -> None:
    changes, clean = changes_of(whole), whole.records("clean")["correct"].to_numpy()
    looks = Looks(LOOKS, 0.02)
    for row in early.summary().itertuples():
        if row.variant != "clean":
            own = changes[row.variant].to_numpy()[: row.n]
            assert row.delta == pytest.approx(own.mean())
            assert row.accuracy_clean == pytest.approx(clean[: row.n].mean())
            low, high = looks.intervals(np.array([(own < 0).sum()]), np.array([(own > 0).sum()]), LOOKS.index(row.n))
            assert (row.ci_low, row.ci_high) == (pytest.approx(low[0]), pytest.approx(high[0]))
            assert np.isnan(row.q_gain)


def test_item_by_item_analyses_take_the_block_that_all_share(early: lp.Run) -> None:
    shared = int(early.summary()["n"].min())
    [effects] = early.effects()
    assert effects.differences.shape[0] == shared
    group = read_group(early, TASK, PROTOCOL)
    assert group is not None
    assert {len(cell.correct) for cell in group.cells.values()} == {shared}
    assert (early.concentration()["n"] == shared).all()


@pytest.mark.slow
def test_each_task_and_protocol_has_its_own_shared_block(model: Path) -> None:
    run = sweep(model, **{**EARLY, "protocols": ("default", "continuation"), "looks": "10,40"})
    sizes = run.summary().groupby("protocol")["n"].min()
    found = {effects.protocol: effects.differences.shape[0] for effects in run.effects()}
    assert found == sizes.to_dict()
    gap = run.protocol_gap()
    assert (gap["n"] == sizes.min()).all()
    first = {name: run.records(name)[lambda frame: frame["protocol"] == "default"] for name in ("clean", "L0.H1.zero")}
    lost = [frame["correct"].head(sizes.min()).mean() for frame in first.values()]
    assert gap.set_index("variant").loc["L0.H1.zero", "delta_a"] == pytest.approx(lost[1] - lost[0])


def test_pages_figures_and_items(early: lp.Run, tmp_path: Path) -> None:
    early.save(tmp_path / "run")
    again = lp.Run.load(tmp_path / "run")
    assert again.summary().equals(early.summary())
    page = again.report().read_text()
    assert "detected as losing more than 0.02, with q ≤ 0.05, or given up; looks at 20, 40, 80 items" in page
    assert "p is the repeated p-value, one-sided, of a loss larger than 0.02" in page
    assert "McNemar" not in page
    sizes = early.summary().set_index("variant")["n"]
    last = early.records("clean")["item_id"].iloc[-1]
    view = early.item(last)
    assert set(view.answers["variant"]) == set(sizes.index[sizes == sizes["clean"]])
    prompts = early.records(prompts=True)
    assert prompts.groupby("item_id")["prompt"].nunique().eq(1).all()
    text = top_variants(early.summary(), TASK, PROTOCOL)
    assert "at chance" in text or "  n" in text


def test_a_run_names_at_its_own_level(tmp_path: Path) -> None:
    lost = {"clean": 0, "L0.skip": 12, "L1.skip": 3, "L2.skip": 0}
    run = layers_run(
        tasks=("facts",),
        protocols=("generate",),
        n_layers=3,
        right=lambda task, protocol, variant, n: np.arange(n) >= lost[variant.name],
    )
    run.spec = replace(run.spec, stopping={"items": [40], "margin": 0.0, "q": 0.5})
    q = run.summary().set_index("variant")["q_loss"]
    assert q["L0.skip"] < 0.05 < q["L1.skip"] < 0.5 < q["L2.skip"]
    assert run.critical_layers()["variant"].tolist() == ["L0.skip", "L1.skip"]
    assert run.critical_layers(q=0.05)["variant"].tolist() == ["L0.skip"]
    page = run.report(tmp_path / "report.html").read_text()
    assert "2 changes of 3 on tasks above chance lower accuracy with q ≤ 0.5." in page
    assert "q of a loss 0.5 or less" in page
    ax = run.plot("depth")
    assert isinstance(ax, Axes)
    assert ax.get_title("left").endswith("needs 0–1")
    legend = [text.get_text() for text in ax.figure.legends[0].get_texts()]
    assert "q ≤ 0.5" in legend
    assert "repeated 95% interval" in legend
    assert not [text for text in ax.texts if text.get_gid() == "n"]
    changed = run.summary().query("variant != 'clean'").assign(n=[40, 20, 30])
    for drawn, title in ((delta_by_depth, "n 20 to 40"), (variant_bars, "n 20 to 40")):
        [ax] = drawn(changed)
        assert title in ax.get_title("left")
        assert [text.get_text() for text in ax.texts if text.get_gid() == "n"] == ["40", "20", "30"]
        legend = [text.get_text() for text in ax.figure.legends[0].get_texts()]
        assert {"paired 95% interval", "small numbers: items measured"} <= set(legend)


def test_compared_with_a_run_of_all_items(whole: lp.Run, early: lp.Run) -> None:
    shared = int(early.summary()["n"].min())
    changes = changes_of(whole).iloc[:shared]
    assert changes.any().any()
    for first, second in ((early, whole), (whole, early), (early, early)):
        gap = first.compare(second).set_index("variant")
        assert (gap["n"] == shared).all()
        assert set(gap["note"].str.replace(", at chance", "")) == {
            f"{shared} items shared, of {80 if first is whole else shared} and "
            f"{80 if second is whole else shared} that all variants answered"
        }
        assert gap["delta_a"].to_dict() == pytest.approx(changes.mean().to_dict())
        assert (gap["gap"] == 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("after", [3, 14])
def test_stopped_within_and_between_looks_it_takes_the_same_decisions(
    model: Path, early: lp.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    out, written, write = tmp_path / "run", 0, RunStore.write

    def stop(store: RunStore, *args: Any) -> None:
        nonlocal written
        if written == after:
            raise KeyboardInterrupt
        written += 1
        write(store, *args)

    monkeypatch.setattr(RunStore, "write", stop)
    with pytest.raises(
        KeyboardInterrupt, match=rf"stopped: {after} blocks of cells.* are stored; resume with: lensprune"
    ):
        sweep(model, out, **EARLY)
    monkeypatch.undo()
    stopped = lp.Run.load(out)
    assert not decided(stopped)
    # No verdict is taken before all have a block, and after the first some variants are decided.
    n = len(early.spec.variants) - 1
    first = int((early.summary()["n"] == LOOKS[0]).sum())
    assert 0 < first < n
    state = f"{first if after > n + 1 else 0} of {n} variants decided"
    assert state in repr(stopped)
    assert f"Not finished: {state}." in stopped.report().read_text()
    assert runs_in(out)["state"].tolist() == [state]
    resumed = lp.resume(out, progress=False)
    assert resumed.summary().equals(early.summary())
    assert len(list((out / "records").glob("*.parquet"))) == early.n_stored
    assert not (out / "damaged").exists()
    assert next_block(resumed, TASK, PROTOCOL) is None
    assert "decided" not in repr(resumed)
    assert runs_in(out)["state"].tolist() == ["finished"]
    assert "Not finished" not in resumed.report().read_text()
    # Finished, it is only summarised again.
    monkeypatch.setattr("lensprune.sweeps.run.run_sweep", lambda *args, **options: pytest.fail("it runs again"))
    assert lp.resume(out, progress=False).summary().equals(early.summary())


class LocalPool:
    """Workers in threads of this process, as `lensprune.sweeps.scheduler.WorkerPool`."""

    def __init__(self, model: Path, options: SweepOptions) -> None:
        self.given = (str(model), options)
        self.workers: dict[int, CellWorker] = {}

    def start(self) -> int:
        self.workers[len(self.workers) + 1] = CellWorker(*self.given)
        return len(self.workers)

    def assign(self, worker: int, unit: Unit) -> None:
        self.workers[worker].assign(unit)

    def updates(self, seconds: float) -> list[tuple[int, WorkerUpdate | WorkerLost]]:
        return [(number, worker.poll(0.05)) for number, worker in self.workers.items()]

    def stop(self, worker: int) -> None:
        del self.workers[worker]


@pytest.mark.slow
def test_workers_take_the_decisions_of_one_process_also_when_stopped(model: Path, early: lp.Run) -> None:
    options = SweepOptions.given(**{**EARLY, "shots": 0, "device": "cpu"})
    scheduler = Scheduler(LocalPool(model, options), 2, 1000.0)
    ready = scheduler.first_ready()
    spec = SweepSpec.from_json(ready.spec, "a worker")
    assert spec.digest == early.spec.digest
    n = len(spec.variants)

    class Stopping(MemoryStore):
        def write(self, key: CellKey, cell: Any) -> None:
            if len(self.finished()) == n + 2:
                raise KeyboardInterrupt
            super().write(key, cell)

    stopped = Stopping()
    with pytest.raises(KeyboardInterrupt):
        measure_on_workers(scheduler, 2, ready, stopped, spec, progress=False)
    assert not decided(Outcomes(spec, stopped))
    store = MemoryStore()
    for key in stopped.finished():
        store.write(key, stopped.read(key))
    again = Scheduler(LocalPool(model, options), 1, 1000.0)
    spent = measure_on_workers(again, 1, again.first_ready(), store, spec, progress=True)
    assert spent is not None
    assert spent.planned_seconds > 0
    assert spent.seconds > 0
    assert spent.planned_memory > 10**8
    outcomes = Outcomes(spec, store)
    assert decided(outcomes)
    assert outcomes.n_stored == early.n_stored
    columns = ["variant", "n", "accuracy", "delta", "ci_low", "p_value", "q_loss", "at_chance"]
    assert summarise(outcomes)[columns].equals(early.summary()[columns])


@pytest.mark.slow
def test_until_narrow(model: Path, whole: lp.Run, tmp_path: Path) -> None:
    run = sweep(model, **{**ASKED, "limit": 80, "until_width": 0.2})
    changes = changes_of(whole)
    for row in run.summary().itertuples():
        if row.variant == "clean":
            continue
        widths = {}
        for n in (25, 50, 75, 80):
            own = mean_intervals(changes[[row.variant]].to_numpy()[:n])
            widths[n] = float(own.high[0] - own.low[0])
        assert row.n == next((n for n, width in widths.items() if width <= 0.2), 80)
        assert row.ci_high - row.ci_low == pytest.approx(widths[row.n])
    assert run.summary()["n"].nunique() > 1
    page = run.report(tmp_path / "report.html").read_text()
    assert "measured until its 95% interval is no wider than 0.2, or 80 items" in page
    assert "McNemar" in page


@pytest.mark.slow
def test_any_look(model: Path, whole: lp.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {**ASKED, "limit": 80, "lost_more_than": 0.1, "looks": "any"}
    run = sweep(model, tmp_path / "run", **asked)
    changes, summary = changes_of(whole), run.summary().set_index("variant").drop("clean")
    names, values, going = list(summary.index), {}, set(summary.index)
    for n in (25, 50, 75, 80):
        own = changes[names].to_numpy()[:n]
        lost, won = (own < 0).sum(axis=0), (own > 0).sum(axis=0)
        values |= {name: e for name, e in zip(names, e_values(lost, won, n, 0.1), strict=True) if name in going}
        q = e_bh(np.array([values[name] for name in names]))
        less = e_values(won, lost, n, -0.1) >= 20
        going -= {name for name, own_q, known in zip(names, q, less, strict=True) if own_q <= 0.05 or known}
        for name in names:
            assert (summary.loc[name, "n"] > n) == (name in going and n < 80)
    assert summary["n"].nunique() > 1
    assert summary["q_loss"].to_numpy() == pytest.approx(q)
    assert summary["p_value"].to_numpy() == pytest.approx([min(1.0, 1 / values[name]) for name in names])
    assert ((summary["ci_low"] < summary["delta"]) & (summary["delta"] < summary["ci_high"])).all()
    again = lp.Run.load(tmp_path / "run")
    assert decided(again)
    page = again.report().read_text()
    assert "or shown to lose less, or 80 items; p, q and intervals come from e-values" in page
    assert "McNemar" not in page
    with pytest.raises(UserError, match=r"limit 80 there, 100 here.*a run's limit is fixed"):
        sweep(model, tmp_path / "run", **{**asked, "limit": 100})
    with pytest.raises(UserError, match="task 'facts' has items in clusters"):
        sweep(model, **{**asked, "tasks": "facts"})


def test_screened_heads_stop_early_too(model: Path, whole: lp.Run) -> None:
    run = sweep(model, **EARLY, screen=0.05)
    assert run.spec.screen is not None
    assert set(run.summary()["variant"]) == {"clean", *run.spec.screen["measured"]}
    assert decided(run)
    summary = run.summary().set_index("variant").drop("clean")
    ranked = run.screen()
    table = ranked[ranked["n"].notna()].set_index("variant").loc[summary.index]
    assert table["n"].tolist() == summary["n"].tolist()
    assert table["delta"].tolist() == pytest.approx(summary["delta"].tolist())
    shared = int(summary["n"].min())
    assert run.screen_quality()["n"].tolist() == [shared]
    # Parts that were ranked and never measured count, for the ranking used the same items.
    few, all_ranked = len(summary), len(ranked)
    assert few < all_ranked
    looks = Looks(LOOKS, 0.02)
    changes = changes_of(whole)
    rows = [
        np.where(summary["n"].to_numpy() >= n, loss_p((own < 0).sum(axis=0), (own > 0).sum(axis=0), n, 0.02), np.nan)
        for n in LOOKS
        if (own := changes[summary.index].to_numpy()[:n]) is not None
    ]
    p = looks.repeated_p(np.stack(rows))
    assert summary["p_value"].to_numpy() == pytest.approx(p)
    q = summary["q_loss"].to_numpy()
    assert q == pytest.approx(benjamini_hochberg(np.append(p, np.ones(all_ranked - few)))[:few])
    assert (q > benjamini_hochberg(p)).any()


@pytest.mark.slow
def test_rows_come_in_the_order_of_the_draw_even_where_all_are_asked(model: Path) -> None:
    run = sweep(
        model,
        **{**EARLY, "tasks": "facts", "looks": "100,333", "shots": 0, "variants": VariantSelection("layers", "skip")},
    )
    asked = run.questions("facts", PROTOCOL).column("item_id").to_pylist()
    assert asked[:100] == [item.id for item in lp.load_task("facts", limit=100, shots=0).items]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lost_more_than": 0.05}, "needs a cap"),
        ({"until_width": 0.1}, "needs a cap"),
        ({"lost_more_than": 1.5, "limit": 9}, r"margin 1\.5 is not a loss"),
        ({"until_width": 0.0, "limit": 9}, "width 0"),
        ({"looks": "10,20"}, "without a loss to test for"),
        ({"q": 0.1}, "without a loss to test for"),
        ({"lost_more_than": 0.05, "looks": "20,10"}, "expected increasing numbers of items"),
        ({"lost_more_than": 0.05, "looks": "a"}, "looks 'a': expected increasing numbers of items, like .*, or any"),
        ({"lost_more_than": 0.05, "looks": "any"}, "needs a cap"),
        ({"looks": "any"}, "without a loss to test for"),
        ({"lost_more_than": 0.05, "looks": "10,20", "limit": 30}, "limit 30 is not the last of the looks"),
        ({"lost_more_than": 0.05, "until_width": 0.1, "limit": 30}, "choose one"),
        ({"lost_more_than": 0.05, "looks": "10,20", "items": "0-19"}, "items 0-19 are given, but a sweep that stops"),
        ({"until_width": 0.1, "limit": 20, "items": "first"}, "items first are given, but a sweep that stops early"),
        ({"lost_more_than": 0.05, "limit": 20, "items": "first+40"}, r"items first\+40 are given, but a sweep that"),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SweepOptions.given("facts", "generate", "layers", **options)


def test_more_items_than_there_are(model: Path) -> None:
    with pytest.raises(UserError, match="task 'facts' has 333 items, fewer than the last look at 1000"):
        sweep(model, **{**EARLY, "tasks": "facts", "looks": "100,1000"})


def test_a_draw_may_have_an_offset() -> None:
    SweepOptions.given("facts", "generate", "layers", lost_more_than=0.05, limit=50, items="drawn+40")


def test_even_looks_up_to_the_limit() -> None:
    options = SweepOptions.given("facts", "generate", "layers", lost_more_than=0.05, limit=50)
    assert options.stopping == Looks((13, 25, 38, 50), 0.05)


@pytest.mark.slow
def test_other_looks_are_another_run(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    sweep(model, out, **EARLY)
    with pytest.raises(UserError, match=r"looks 20,40,80 there, 20,40,60,80 here.*invalidates the error rates"):
        sweep(model, out, **{**EARLY, "looks": "20,40,60,80"})
    with pytest.raises(UserError, match="contains another run"):
        sweep(model, out, **{**EARLY, "q": 0.1})
