"""Orders of removal on a planted circuit whose needed heads are known."""

from __future__ import annotations

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd
import pytest

from lensprune.ablation import Head, each_head
from lensprune.ablation.orders import keep_first, random_orders, remove_first
from lensprune.errors import UserError
from lensprune.heads.rankings import importance_of
from lensprune.heads.removal import _orders, removal_curves
from lensprune.results.figures.removal import removal_figure
from lensprune.sweeps.run import sweep
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
