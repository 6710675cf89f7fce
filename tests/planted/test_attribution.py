"""Every attribution method against circuits whose heads and edges are known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from lensprune.attribution import (
    PromptPair,
    activation_patching,
    attribution_patching,
    circuit_metrics,
    direct_and_total_effects,
    direct_logit_attribution,
    edge_attribution,
    faithfulness_curve,
    greedy_circuit,
    logit_lens,
    path_effect,
    path_patching,
    source_attribution,
    top_circuit,
)
from lensprune.attribution.graph import EdgeGraph
from lensprune.models.base import HookedModel
from tests.helpers.planted.circuits import LEAK, ids, model_of
from tests.helpers.planted.models import SHAPES


def pair(model: HookedModel, clean: str, corrupt: str, answer: str, wrong: str) -> PromptPair:
    encode = model.tokenizer.convert_tokens_to_ids
    return PromptPair(ids(model, clean), ids(model, corrupt), encode(answer), encode(wrong), label=clean)


def induction_pairs(model: HookedModel) -> list[PromptPair]:
    """No earlier a; another token behind it; another last token: each breaks another part of the circuit."""
    return [
        pair(model, "a b c d a", "f b c d a", "b", "e"),
        pair(model, "a b c d a", "a e c d a", "b", "e"),
        pair(model, "a b c d a", "a b c d f", "b", "e"),
    ]


def retrieval_pairs(model: HookedModel) -> list[PromptPair]:
    """Another key asked; another value at the key; another key in front of the value."""
    clean = "k1 = v4 ; k3 = v0 ; ? k3 ="
    return [
        pair(model, clean, "k1 = v4 ; k3 = v0 ; ? k5 =", "v0", "v2"),
        pair(model, clean, "k1 = v4 ; k3 = v2 ; ? k3 =", "v0", "v2"),
        pair(model, clean, "k1 = v4 ; k5 = v0 ; ? k3 =", "v0", "v2"),
    ]


PAIRS = {"induction": induction_pairs, "retrieval": retrieval_pairs}


def circuit_edges(name: str, shape: str) -> set[tuple[str, str]]:
    kv = (lambda head: f"KV{head // 2}") if shape == "llama" else (lambda head: f"H{head}")
    if name == "induction":
        return {
            ("embed", f"L0.{kv(1)}.v"),
            ("L0.H1", f"L1.{kv(2)}.k"),
            ("embed", "L1.H2.q"),
            ("embed", f"L1.{kv(2)}.v"),
            ("L1.H2", "logits"),
        }
    return {
        ("embed", f"L0.{kv(0)}.v"),
        ("embed", f"L0.{kv(2)}.v"),
        ("L0.H0", "L1.H3.q"),
        ("L0.H2", f"L1.{kv(3)}.k"),
        ("embed", f"L1.{kv(3)}.v"),
        ("L1.H3", "logits"),
    }


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", PAIRS)
def test_path_patching_finds_exactly_the_planted_edges(name: str, shape: str) -> None:
    model = model_of(name, shape)
    pairs = PAIRS[name](model)
    found = set()
    for receiver in EdgeGraph.of(model.facts).readers:
        for row in path_patching(model, pairs, receiver).to_dict("records"):
            if abs(row["effect"]) > 1e-3:
                # Each edge that is hit by a pair takes at least the answer's 10 logits in one of three pairs.
                assert row["effect"] < -3.3
                found.add((row["sender"], row["receiver"]))
    assert found == circuit_edges(name, shape)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", PAIRS)
def test_integrated_gradients_rank_exactly_the_planted_edges_first(name: str, shape: str) -> None:
    model = model_of(f"soft {name}", shape)
    pairs = PAIRS[name](model)
    scores = edge_attribution(model, pairs, steps=10)
    expected = circuit_edges(name, shape)
    table = scores.table()
    assert set(zip(table["source"][: len(expected)], table["target"][: len(expected)], strict=True)) == expected
    assert (table["effect"][: len(expected)] < 0).all()
    assert table["effect"][len(expected) :].abs().max() < 0.1 * table["effect"][: len(expected)].abs().min()
    for build in (greedy_circuit, top_circuit):
        circuit = build(scores, len(expected))
        assert set(circuit.edges) == expected
        measured = circuit_metrics(model, pairs, [circuit])
        # Soft attention keeps 2 % for other keys; without an edge of the circuit half or more is lost.
        assert measured.faithfulness[0] == pytest.approx(1, abs=0.02)
    curve = faithfulness_curve(model, pairs, scores, (0.0, len(expected) / scores.graph.n_edges + 1e-9, 1.0))
    assert curve.table["faithfulness"].iloc[1] == pytest.approx(1, abs=0.02)
    assert curve.cmd < 0.5 * len(expected) / scores.graph.n_edges + 0.02


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", PAIRS)
def test_patching_finds_exactly_the_planted_heads(name: str, shape: str) -> None:
    model = model_of(name, shape)
    frame = activation_patching(model, PAIRS[name](model), ["head", "mlp"])
    found = {(row.layer, row.head) for row in frame.itertuples() if abs(row.effect) > 1e-3}
    assert found == {"induction": {(0, 1), (1, 2)}, "retrieval": {(0, 0), (0, 2), (1, 3)}}[name]
    soft = model_of(f"soft {name}", shape)
    estimated = attribution_patching(soft, PAIRS[name](soft), ["head", "mlp"])
    ranked = estimated.reindex(estimated["effect"].abs().sort_values(ascending=False).index)
    assert set(zip(ranked["layer"][: len(found)], ranked["head"][: len(found)], strict=True)) == found


@pytest.mark.parametrize("shape", SHAPES)
def test_patching_by_position_shows_where_each_head_works(shape: str) -> None:
    model = model_of("induction", shape)
    frame = activation_patching(model, induction_pairs(model)[:1], ["head"], by_position=True)
    found = {(row.layer, row.head, row.position) for row in frame.itertuples() if abs(row.effect) > 1e-3}
    # The previous-token head is read at b (2), the induction head at the last a (5).
    assert found == {(0, 1, 2), (1, 2, 5)}


@pytest.mark.parametrize("shape", SHAPES)
def test_direct_attribution_gives_the_logit_to_the_induction_head_and_its_source(shape: str) -> None:
    model = model_of("induction", shape)
    pairs = induction_pairs(model)[:1]
    table = direct_logit_attribution(model, pairs).table()
    values = dict(zip(table["part"], table["value"], strict=True))
    assert values.pop("L1.H2") == pytest.approx(10, abs=10 * LEAK)
    assert max(map(abs, values.values())) < 10 * LEAK
    sources = source_attribution(model, pairs[0], [(1, 2)])
    assert sources["token"].tolist()[2] == "b"
    np.testing.assert_allclose(sources["value"], [0, 0, 10, 0, 0, 0], atol=10 * LEAK)
    assert logit_lens(model, pairs)["logit_difference"].tolist() == pytest.approx([0, 0, 10], abs=10 * LEAK)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_whole_path_carries_the_whole_effect_and_no_other_does(shape: str) -> None:
    model = model_of("induction", shape)
    pairs = induction_pairs(model)[:1]
    assert path_effect(model, pairs, ["embed", "L0.H1.v", "L1.H2.k", "logits"]) == pytest.approx(-10, abs=10 * LEAK)
    assert path_effect(model, pairs, ["L0.H1", "L1.H2.k", "logits"]) == pytest.approx(-10, abs=10 * LEAK)
    for path in (["L0.H1", "L1.H2.q", "logits"], ["L0.H1", "L1.H2.v", "logits"], ["L0.H1", "L1.H3.k", "logits"]):
        assert path_effect(model, pairs, path) == pytest.approx(0, abs=LEAK)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_back_up_shows_as_self_repair(shape: str) -> None:
    model = model_of("backup", shape)
    frame = direct_and_total_effects(model, [pair(model, "a b c d a", "f b c d a", "b", "e")])
    table = frame.set_index(["layer", "head"])
    assert table.loc[(1, 2)].tolist() == pytest.approx([-10, 0, 10], abs=10 * LEAK)
    assert table.loc[(0, 1)].tolist() == pytest.approx([0, -10, -10], abs=10 * LEAK)
    others = table.drop([(1, 2), (0, 1)])
    assert others.abs().to_numpy().max() < 10 * LEAK


@pytest.mark.parametrize("shape", SHAPES)
def test_on_a_linear_model_estimates_are_exact(shape: str) -> None:
    model = model_of("linear", shape)
    pairs = [pair(model, "a b c d", "a e c f", "b", "e"), pair(model, "b b a c", "b e a c", "b", "e")]
    exact = activation_patching(model, pairs, ["head", "resid", "attention"], by_position=True)
    estimated = attribution_patching(model, pairs, ["head", "resid", "attention"], by_position=True)
    pd.testing.assert_frame_equal(exact, estimated, atol=2 * LEAK)
    assert exact["effect"].abs().max() > 1
    plain = edge_attribution(model, pairs, steps=1)
    integrated = edge_attribution(model, pairs, steps=7)
    np.testing.assert_allclose(plain.values, integrated.values, atol=2 * LEAK)
    for receiver in plain.graph.readers:
        reader = plain.graph.reader(receiver)
        for row in path_patching(model, pairs, receiver).to_dict("records"):
            expected = float(plain.values[plain.graph.writer(row["sender"]), reader])
            assert row["effect"] == pytest.approx(expected, abs=2 * LEAK)
    # All paths from L0.H1: straight to the logits (it writes nothing there), or by the values of L1.H2.
    total = activation_patching(model, pairs, ["head"])
    whole = total[(total["layer"] == 0) & (total["head"] == 1)]["effect"].iloc[0]
    assert path_effect(model, pairs, ["L0.H1", "L1.H2.v", "logits"]) == pytest.approx(whole, abs=2 * LEAK)
