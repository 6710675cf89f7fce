"""Orders of removal on a planted circuit whose needed heads are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from lensprune.ablation import Ablation, Head, Variant, each_head
from lensprune.ablation.orders import keep_first, named_random_orders, random_orders, remove_first
from lensprune.analysis.removal import removal_points
from lensprune.cli import main
from lensprune.errors import UserError
from lensprune.heads.rankings import importance_of, read_rankings, shared_items
from lensprune.heads.removal import RemovalCurves, _orders, removal_curves
from lensprune.results.figures.removal import removal_figure
from lensprune.sweeps.run import sweep
from tests.helpers.made_runs import heads_run, layers_run
from tests.helpers.planted.circuits import model_of

HEADS = [Head(layer, head) for layer in range(2) for head in range(4)]


def test_variants_hold_what_their_names_say() -> None:
    orders = {"a": HEADS, "b": HEADS[::-1]}
    removed = {v.name: [a.component for a in v.ablations] for v in remove_first(orders, [1, 8], "zero")}
    assert removed["b.remove1.zero"] == [Head(1, 3)]
    assert len(removed["a.remove8.zero"]) == 8
    kept = {v.name: [a.component for a in v.ablations] for v in keep_first(orders, [0, 7], "mean")}
    assert kept["a.keep7.mean"] == [Head(1, 3)]
    assert len(kept["a.keep0.mean"]) == 8
    for build, k in ((remove_first, 0), (remove_first, 9), (keep_first, 8), (keep_first, -1)):
        with pytest.raises(UserError, match="choose"):
            build(orders, [k])


def test_random_orders_are_shuffles_by_seed() -> None:
    some = random_orders(HEADS, 3, seed=1)
    assert some == random_orders(HEADS, 3, seed=1)
    assert all(sorted(order) == HEADS for order in some)
    assert len(set(some)) == 3
    assert some != random_orders(HEADS, 3, seed=2)


def test_removal_in_order_of_importance() -> None:
    """The planted model answers a sum by its first operand, which is never the sum."""
    model = model_of("arithmetic", "llama")
    run = sweep(model, ["arithmetic"], ["continuation"], each_head(model), limit=8, shots=0, progress=False)
    importance = importance_of(run, measure="gold_logprob")
    # The planted head lowers the log-probability of the true sum, so removing it helps: its importance is negative.
    worst = importance.sort_values("value").head(2)
    assert set(zip(worst["layer"], worst["head"], strict=True)) == {(0, 3), (1, 0)}
    importance["value"] = -importance["value"]
    curves = removal_curves(
        model,
        importance,
        ["arithmetic"],
        ["continuation"],
        counts=[1, 2, 8],
        orders=["important_first", "unimportant_first", "deep_first", "random"],
        limit=8,
        shots=0,
        progress=False,
    )
    assert len(curves.table) == 3 * (3 + 20)
    everything = curves.table[curves.table["k"] == 8]["accuracy"]
    assert everything.nunique() == 1
    summary = curves.summary()
    assert set(summary["order"]) == {"important_first", "unimportant_first", "deep_first", "random"}
    assert (summary["random_low"] <= summary["random_mean"]).all()
    ranked = summary[summary["order"] != "random"]
    assert (ranked[ranked["k"] == 8]["p_value"] == 1).all()
    plt.close(removal_figure(summary)[0].figure)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"orders": ["important_first"]}, "add it"),
        ({"orders": ["importnt_first", "random"]}, "did you mean important_first"),
        ({"random_seeds": 5}, "20 or more"),
        ({"mode": "drop"}, "unknown mode"),
        ({"counts": [9]}, "cannot remove 9 of 8"),
    ],
)
def test_refusals(changes: dict, message: str) -> None:
    importance = pd.DataFrame([(h.layer, h.head, 1.0) for h in HEADS], columns=["layer", "head", "value"])
    arguments = {"counts": [1], **changes}
    with pytest.raises(UserError, match=message):
        removal_curves(model_of("arithmetic", "llama"), importance, ["arithmetic"], progress=False, **arguments)


def test_rankings_are_compared_with_each_other_and_with_chance() -> None:
    model = model_of("arithmetic", "llama")
    circuit = Head(0, 3), Head(1, 0)
    found = pd.DataFrame([(h.layer, h.head, float(h in circuit)) for h in HEADS], columns=["layer", "head", "value"])
    rankings = {"circuit": found, "others": found.assign(value=-found["value"])}
    named = _orders(rankings, ["important_first", "random", "deep_first"], 20, 0)
    assert set(named) == {"circuit", "others", "deep_first", *(f"random#{index}" for index in range(20))}
    assert named["circuit"][:2] == named["others"][-2:] == circuit
    assert named["deep_first"] == tuple(HEADS[::-1])
    items = {"limit": 2, "shots": 0, "progress": False}
    curves = removal_curves(model, rankings, "arithmetic", "continuation", counts=[2], orders=["random"], **items)
    assert curves.summary()["order"].tolist() == ["circuit", "others", "random"]
    axes = removal_figure(curves.summary())
    assert axes[0].get_legend_handles_labels()[1][:2] == ["circuit", "others"]
    plt.close(axes[0].figure)


@pytest.mark.parametrize(
    ("rankings", "message"),
    [
        ({}, "name at least one"),
        ({"random": ["L0.H0"]}, "ranking 'random': expected letters"),
        ({"by score": ["L0.H0"]}, "ranking 'by score': expected letters"),
        ({"a": ["L0.H0"], "b": ["L0.H1"]}, "rankings of different heads"),
    ],
)
def test_refused_rankings(rankings: dict[str, list[str]], message: str) -> None:
    frames = {
        name: pd.DataFrame(
            [(int(label[1]), int(label[4]), 1.0) for label in labels], columns=["layer", "head", "value"]
        )
        for name, labels in rankings.items()
    }
    with pytest.raises(UserError, match=message):
        _orders(frames, ["random"], 20, 0)


def test_intervals_ranges_and_p_values_beside_random_orders() -> None:
    """Of 40 items each head holds five of its own; random order i starts with head i."""
    order = [HEADS[3], HEADS[0]]
    shuffles = {f"random#{index}": (HEADS[index], HEADS[0]) for index in range(4)}

    def right(task: str, protocol: str, variant: Variant, n: int) -> np.ndarray:
        lost = {HEADS.index(ablation.component) for ablation in variant.ablations}
        return ~np.isin(np.arange(n) // 5, list(lost & {0, 3}))

    variants = [*remove_first({"mine": order, **shuffles}, [1], "zero"), *keep_first({"mine": order}, [1], "zero")]
    run = layers_run(variants=variants, right=right, tasks=("facts",), protocols=("generate",), n_layers=2)
    table = run.plot_data("removal").set_index(["mode", "order"])
    mine, random = table.loc[("remove", "mine")], table.loc[("remove", "random")]
    assert (mine["accuracy"], mine["delta"], mine["n"]) == (0.875, -0.125, 40)
    assert mine["ci_low"] < -0.125 < mine["ci_high"] < 0
    # Two of the four random orders remove a head that holds items; at least as bad: the same two.
    assert random["accuracy"] == mine["random_mean"] == pytest.approx(0.9375)
    assert (mine["random_low"], mine["random_high"]) == (0.875, 1)
    assert mine["p_value"] == pytest.approx(3 / 5)
    assert random["n_orders"] == 4
    assert pd.isna(random["ci_low"])
    assert pd.isna(random["p_value"])
    kept = table.loc[("keep", "mine")]
    assert kept["accuracy"] == 0.875
    assert pd.isna(kept["p_value"])
    with pytest.raises(UserError, match="point of a removal curve"):
        run.plot_data("variants")
    # Curves are what such a run is drawn as.
    axes = run.plot()
    assert [ax.get_xlabel() for ax in axes] == ["parts removed", "parts kept"]
    plt.close(axes[0].figure)
    with pytest.raises(UserError, match="removes no parts in order"):
        layers_run(n=2, n_layers=2).plot_data("removal")


def test_rankings_are_read_from_sweeps_scores_and_tables(tmp_path: Path) -> None:
    swept = heads_run(folder=tmp_path / "heads", tasks=("facts",), protocols=("generate",))
    values = {"score": ["a", "a", "b", "b"], "value": [0.1, 0.2, 0.4, 0.3]}
    scores = pd.DataFrame({"layer": 0, "head": [0, 1] * 2, **values})
    (tmp_path / "functions").mkdir()
    scores.to_csv(tmp_path / "functions" / "heads.csv", index=False)
    scores[:2].drop(columns="score").to_csv(tmp_path / "own.csv", index=False)
    found = read_rankings([str(tmp_path / name) for name in ("heads", "functions", "own.csv")])
    assert list(found.frames) == ["heads", "a", "b", "own"]
    assert found.frames["b"]["value"].tolist() == [0.4, 0.3]
    # The clean model is always right, and head (1, 2) is needed for half of the items.
    pd.testing.assert_frame_equal(found.frames["heads"], importance_of(swept))
    best = found.frames["heads"].sort_values("value").iloc[-1]
    assert (best["layer"], best["head"], best["value"]) == (1, 2, 0.5)
    assert shared_items(swept, found) == {"heads": (40, 40)}
    named = read_rankings(
        [f"effect={tmp_path / 'heads'}", f"b={tmp_path / 'functions'}", f"mine={tmp_path / 'own.csv'}"]
    )
    assert list(named.frames) == ["effect", "b", "mine"]
    assert list(named.runs) == ["effect"]


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (["nowhere"], "there is no ranking at nowhere: expected the folder of a sweep over heads"),
        (["own.csv", "own=own.csv"], "ranking 'own' is given twice: name one of them, like other=own.csv"),
        (["c=scores.csv"], "unknown score in scores.csv 'c'"),
        (["plain.csv"], "plain.csv has no column 'value': expected layer, head and value, found layer, head"),
        (["words.csv"], "has a value that is not a number"),
        (["empty.csv"], "cannot read the ranking empty.csv"),
    ],
)
def test_refused_sources(sources: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in {
        "own": "layer,head,value\n0,0,1\n",
        "scores": "layer,head,score,value\n0,0,a,1\n",
        "plain": "layer,head\n0,0\n",
        "words": "layer,head,value\n0,0,high\n",
        "empty": "",
    }.items():
        Path(f"{name}.csv").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_rankings(sources)


def test_the_command_hands_on_what_it_is_given_and_says_which_items_ranked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"tasks": ("facts",), "protocols": ("generate",), "n": 8}
    heads_run(folder=tmp_path / "heads", **places)
    orders = {"effect": HEADS, **named_random_orders(HEADS, 2)}
    curves_of = layers_run(variants=remove_first(orders, [1, 3]), n_layers=2, **places)
    seen: dict[str, Any] = {}

    def measure(*given: Any, **options: Any) -> RemovalCurves:
        seen.update(options, rankings=given[1])
        return RemovalCurves("remove", removal_points(curves_of), curves_of)

    monkeypatch.setattr("lensprune.heads.removal.removal_curves", measure)
    given = ["removal", "--model", "toy-base", "--task", "facts", "--ranking", f"effect={tmp_path / 'heads'}"]
    assert main([*given, "--counts", "1,3", "--random-orders", "30", "--keep", "--out", "there"]) == 0
    assert list(seen["rankings"]) == ["effect"]
    named = [seen[name] for name in ("counts", "random_seeds", "mode", "orders", "out", "ablation")]
    assert named == [[1, 3], 30, "keep", ["random"], "there", "zero"]
    printed = capsys.readouterr().out
    assert "Removal curves" in printed
    assert "ranking effect comes from 8 of these 8 items: its curve is optimistic" in printed
    assert main([*given, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["order"], row["k"], row["n_orders"]) for row in rows] == [
        ("effect", 1, 1), ("effect", 3, 1), ("random", 1, 2), ("random", 3, 2)
    ]  # fmt: skip
    assert seen["mode"] == "remove"
    assert seen["counts"] == [1, 2, 4, 8, 16]
    assert main([*given, "--counts", "1,x"]) == 2
    assert "expected a whole number, not 'x'" in capsys.readouterr().err
    assert main(given[:-2]) == 2
    assert "no ranking given: use --ranking FOLDER" in capsys.readouterr().err


def test_the_same_change_under_two_names_counts_once() -> None:
    same = Ablation(Head(1, 2), "zero")
    named = {"L1.H2.zero": (same,), "mine": (same,), "L0.H1.zero": (Ablation(Head(0, 1), "zero"),)}
    variants = [Variant(name, ablations) for name, ablations in named.items()]
    run = heads_run(variants=[*variants, *remove_first({"o": [Head(1, 2)]}, [1])], tasks=("facts",))
    data = run.plot_data("heads", protocol="generate")
    assert data.sort_values("layer")[["layer", "head", "delta"]].to_numpy().tolist() == [[0, 1, 0], [1, 2, -0.5]]
    [effects] = run.effects("facts", "generate")
    assert effects.variants == ("L1.H2.zero", "L0.H1.zero")
    [row] = run.records("o.remove1.zero", protocol="generate")[["component", "layer"]].drop_duplicates().to_numpy()
    assert row[0] == "range"
    assert pd.isna(row[1])
    [delta] = run.plot_data("removal", protocol="generate")["delta"]
    assert delta == -0.5
