"""Edges, paths and circuits: identities that hold for any model, brute force, finite differences."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from lensprune.attribution import (
    EdgeGraph,
    EdgeScores,
    attribution_patching,
    circuit_metrics,
    direct_and_total_effects,
    edge_attribution,
    faithfulness_curve,
    greedy_circuit,
    path_effect,
    path_patching,
    top_circuit,
)
from lensprune.attribution.circuits import Circuit
from lensprune.attribution.faithfulness import areas
from lensprune.attribution.runs import edge_inputs, edit_hook, last_logits, run_hooked
from lensprune.attribution.writers import replace_edges
from lensprune.errors import UserError
from tests.helpers.attribution import PAIRS, UNEVEN, difference, logit_size, metric, writes
from tests.helpers.tiny_models import double, tiny
from tests.helpers.tolerances import assert_tensors_agree, assert_zero, equal, size_of

ADDITIVE = ["llama", "qwen2", "qwen3", "mistral", "phi3", "gpt2", "gpt_neox", "mixtral"]


def test_graph_of_a_grouped_model_by_hand() -> None:
    graph = EdgeGraph(n_layers=2, n_heads=2, n_key_value_heads=1, parallel=False)
    assert graph.writers == ("embed", "L0.H0", "L0.H1", "L0.mlp", "L1.H0", "L1.H1", "L1.mlp")
    assert graph.readers[:5] == ("L0.H0.q", "L0.H1.q", "L0.KV0.k", "L0.KV0.v", "L0.mlp")
    # Layer 0: 4 attention inputs read the embedding, the MLP 3 writers; layer 1: 4 × 4 and 6; logits: 7.
    assert graph.n_edges == 4 + 3 + 16 + 6 + 7
    assert graph.inputs_of[graph.writer("L1.H1")] == tuple(graph.reader(f"L1.{r}") for r in ("H1.q", "KV0.k", "KV0.v"))
    with pytest.raises(UserError, match=r"L1\.H0\.q does not read"):
        graph.mask([("L1.mlp", "L1.H0.q")])
    with pytest.raises(UserError, match="unknown reader"):
        graph.mask([("embed", "L1.H0.k")])
    parallel = EdgeGraph(2, 2, 2, True)
    assert not parallel.edges[parallel.writer("L0.H0"), parallel.reader("L0.mlp")]
    assert "L1.H1.k" in parallel.readers


def test_pruning_keeps_only_what_leads_from_the_embedding_to_the_logits() -> None:
    graph = EdgeGraph(2, 2, 1, False)
    good = [("embed", "L0.KV0.v"), ("L0.H1", "L1.mlp"), ("L1.mlp", "logits")]
    dead = [("L0.mlp", "logits"), ("embed", "L1.H0.q"), ("L1.H1", "L1.mlp")]
    assert equal(graph.connected(graph.mask([*good, *dead])), graph.mask(good))


@pytest.mark.parametrize("family", ADDITIVE)
def test_no_edge_and_every_edge(family: str) -> None:
    model = tiny(family)
    graph, tokens, _, corrupt = writes(model)
    nothing = torch.zeros_like(graph.edges)[None]
    assert_tensors_agree(
        replace_edges(model, graph, tokens, nothing, corrupt), last_logits(model, tokens), torch.float32
    )
    expected = last_logits(model, torch.tensor([PAIRS[0].corrupt]))
    everything = replace_edges(model, graph, tokens, graph.edges[None], corrupt)
    assert_tensors_agree(everything, expected, torch.float32)
    assert not torch.allclose(expected, last_logits(model, tokens), atol=1e-3)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_edge_scores_are_derivatives_by_finite_differences(family: str) -> None:
    # The step balances its square against float32 rounding over the step, as for nodes.
    model, step = double(family), 3e-3
    graph, tokens, clean, corrupt = writes(model)
    scores = edge_attribution(model, PAIRS[:1], steps=1)
    places = scores.graph.edges.nonzero().tolist()
    rng = np.random.default_rng(0)
    for index in rng.choice(len(places), size=25, replace=False):
        writer, reader = places[index]
        mask = torch.zeros_like(graph.edges)[None]
        mask[0, writer, reader] = True
        ends = [
            difference(replace_edges(model, graph, tokens, mask, clean + sign * step * (corrupt - clean)))
            for sign in (1, -1)
        ]
        assert float(scores.values[writer, reader]) == pytest.approx(
            (ends[0] - ends[1]) / (2 * step), rel=5e-3, abs=2e-5
        )


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_edges_out_of_a_part_sum_to_its_node_attribution(family: str) -> None:
    model = double(family)
    edges = edge_attribution(model, PAIRS, steps=1).values
    out = edges.sum(1)
    nodes = attribution_patching(model, PAIRS, ["head", "mlp"])
    graph = EdgeGraph.of(model.facts)
    for row in nodes.to_dict("records"):
        name = f"L{row['layer']}.mlp" if pd.isna(row["head"]) else f"L{row['layer']}.H{row['head']}"
        found = float(out[graph.writer(name)])
        # Gradients pass through float32 norms.
        assert_tensors_agree(found, row["effect"], torch.float32, size=size_of(edges), terms=edges.shape[1])


def test_integrated_gradients_of_the_embedding_add_up_to_the_change_of_the_metric() -> None:
    model = double("llama")
    change = np.mean([metric(model, pair, pair.corrupt) - metric(model, pair, pair.clean) for pair in PAIRS])
    errors = []
    for steps in (1, 8, 64):
        embed = float(edge_attribution(model, PAIRS, steps=steps).values[0].sum())
        errors.append(abs(embed - change))
    assert errors[2] < errors[1] < errors[0]
    assert errors[2] < 0.05 * abs(change)


def test_batched_edges_are_sequential_edges() -> None:
    model = tiny("llama")
    many = edge_attribution(model, UNEVEN, steps=2, batch_size=8).values
    one = edge_attribution(model, UNEVEN, steps=2, batch_size=1).values
    assert_tensors_agree(many, one, torch.float32, size=logit_size(model), terms=4)
    many, one = (path_patching(model, UNEVEN, "L2.H3.q", rows=rows) for rows in (16, 1))
    assert_tensors_agree(many, one, torch.float32, size=logit_size(model), terms=4)


def test_the_models_settings_come_back() -> None:
    model = tiny("llama")
    before = last_logits(model, torch.tensor([PAIRS[0].clean]))

    def stop() -> None:
        with edge_inputs(model):
            assert model.module.cfg.use_split_qkv_input
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stop()
    assert not model.module.cfg.use_split_qkv_input
    assert not model.module.cfg.use_hook_mlp_in
    assert equal(last_logits(model, torch.tensor([PAIRS[0].clean])), before)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_path_patching_is_one_edge_by_brute_force(family: str) -> None:
    model = tiny(family)
    graph, tokens, clean, corrupt = writes(model)
    base = difference(last_logits(model, tokens))

    def assert_same(found: object, expected: object) -> None:
        assert_tensors_agree(found, expected, torch.float32, size=logit_size(model), terms=4)

    sender = graph.writer("L0.H1")
    change = (corrupt - clean)[sender]
    for receiver, hook, head in (("L2.H3.q", "attn.hook_q_input", 3), ("L2.mlp", "hook_mlp_in", -1)):

        def add(activation: torch.Tensor, head: int = head) -> torch.Tensor:
            changed = activation.clone()
            if head < 0:
                return changed + change
            changed[:, :, head] += change
            return changed

        with torch.no_grad(), edge_inputs(model):
            logits = run_hooked(model, tokens, [(f"blocks.2.{hook}", edit_hook(add))])
        frame = path_patching(model, PAIRS[:1], receiver, ["L0.H1"])
        assert_same(frame["effect"], [difference(logits) - base])
    direct = path_patching(model, PAIRS[:1], "logits", ["L0.H1"])["effect"].iloc[0]
    mask = graph.mask([("L0.H1", "logits")])[None]
    assert_same(direct, difference(replace_edges(model, graph, tokens, mask, corrupt)) - base)
    assert_same(path_effect(model, PAIRS[:1], ["L0.H1", "logits"]), direct)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_longer_path_by_two_plain_runs(family: str) -> None:
    """Into the key of L1.H2 alone, and from its output to the logits alone."""
    model = tiny(family)
    graph, tokens, clean, corrupt = writes(model)
    base = difference(last_logits(model, tokens))
    key = 2 // model.facts.heads_per_group
    seen = {}

    def add(activation: torch.Tensor) -> torch.Tensor:
        changed = activation.clone()
        changed[:, :, key] += (corrupt - clean)[graph.writer("L0.H1")]
        return changed

    def look(z: torch.Tensor) -> None:
        seen["z"] = z[:, :, 2].clone()

    hooks = [("blocks.1.attn.hook_k_input", edit_hook(add)), ("blocks.1.attn.hook_z", edit_hook(look))]
    with torch.no_grad(), edge_inputs(model):
        run_hooked(model, tokens, hooks)
        moved = clean.clone()
        moved[graph.writer("L1.H2")] = seen["z"] @ model.module.blocks[1].attn.W_O[2]
    logits = replace_edges(model, graph, tokens, graph.mask([("L1.H2", "logits")])[None], moved)
    found = path_effect(model, PAIRS[:1], ["L0.H1", "L1.H2.k", "logits"])
    expected = difference(logits) - base
    assert_tensors_agree(found, expected, torch.float32, size=logit_size(model), terms=4)


def test_paths_that_are_none() -> None:
    model = tiny("llama")
    for path, message in (
        (["L0.H1"], "does not lead"),
        (["L0.H1", "L1.H2.k"], "does not lead"),
        (["L1.H1", "L1.H2.k", "logits"], "is not an edge"),
        (["L0.H1", "L1.H2.z", "logits"], "not an input"),
        (["L0.H9", "logits"], "unknown writer"),
    ):
        with pytest.raises(UserError, match=message):
            path_effect(model, PAIRS, path)


def test_direct_effects_are_edges_to_the_logits() -> None:
    model = tiny("llama")
    frame = direct_and_total_effects(model, PAIRS)
    assert len(frame) == 12
    last = frame[frame["layer"] == 2]
    # Behind the last layer's heads there is its MLP only, so the difference is what the MLP does about it.
    assert (last["self_repair"].abs() > 0).any()
    np.testing.assert_allclose(frame["total"] - frame["direct"], frame["self_repair"])


def test_greedy_takes_edges_from_the_logits_up() -> None:
    graph = EdgeGraph(2, 2, 1, False)
    values = torch.zeros(graph.edges.shape, dtype=torch.float64)
    for (source, target), value in {
        ("L1.mlp", "logits"): -3.0,
        ("L0.H1", "L1.mlp"): 2.0,
        ("embed", "L0.KV0.v"): -1.0,
        ("embed", "L1.H0.q"): -9.0,
    }.items():
        values[graph.writer(source), graph.reader(target)] = value
    scores = EdgeScores(graph, values, 1)
    assert greedy_circuit(scores, 3).edges == [("embed", "L0.KV0.v"), ("L0.H1", "L1.mlp"), ("L1.mlp", "logits")]
    assert greedy_circuit(scores, 3).heads() == [(0, 1)]
    assert greedy_circuit(scores, 2).edges == []
    assert greedy_circuit(scores, 2, prune=False).edges == [("L0.H1", "L1.mlp"), ("L1.mlp", "logits")]
    assert ("embed", "L1.H0.q") in top_circuit(scores, 4, prune=False).edges
    assert ("embed", "L1.H0.q") not in top_circuit(scores, 4).edges
    # By −effect the edge with +2 works against the answer, so it comes last.
    assert ("L0.H1", "L1.mlp") not in top_circuit(scores, 4, absolute=False, prune=False).edges
    everything = top_circuit(scores, graph.n_edges)
    assert equal(everything.kept, graph.edges)
    with pytest.raises(UserError, match="the model has"):
        top_circuit(scores, graph.n_edges + 1)


def test_faithfulness_from_nothing_to_everything() -> None:
    model = tiny("llama")
    scores = edge_attribution(model, UNEVEN, steps=3)
    curve = faithfulness_curve(model, UNEVEN, scores, (0.0, 0.2, 0.6, 1.0))
    size = logit_size(model)
    share = size / abs(curve.clean - curve.corrupt)
    nothing, everything = curve.table["faithfulness"].iloc[[0, -1]]
    assert_zero(nothing, torch.float32, size=share, terms=4)
    assert_zero(everything - 1, torch.float32, size=share, terms=4)
    assert curve.table["n_edges"].iloc[-1] == scores.graph.n_edges
    assert (curve.table["n_kept"] <= curve.table["n_edges"]).all()
    assert (curve.cpr, curve.cmd) == areas((0.0, 0.2, 0.6, 1.0), curve.table["faithfulness"])
    clean = np.mean([metric(model, pair, pair.clean) for pair in UNEVEN])
    assert_tensors_agree(curve.clean, clean, torch.float32, size=size, terms=2)


def test_areas_by_hand() -> None:
    cpr, cmd = areas((0.0, 0.5, 1.0), (0.0, 1.2, 1.0))
    assert cpr == pytest.approx(0.5 * 0.6 + 0.5 * 1.1)
    assert cmd == pytest.approx(0.5 * 0.6 + 0.5 * 0.1)


def test_refusals() -> None:
    with pytest.raises(UserError, match="no edge leaves a single head"):
        edge_attribution(tiny("gemma3"), PAIRS)
    model = tiny("llama")
    with pytest.raises(UserError, match="not positive"):
        edge_attribution(model, PAIRS, steps=0)
    other = EdgeGraph(1, 1, 1, False)
    with pytest.raises(UserError, match="another shape"):
        circuit_metrics(model, PAIRS, [Circuit(other, other.edges, 1)])
    scores = EdgeScores(EdgeGraph.of(model.facts), torch.zeros(EdgeGraph.of(model.facts).edges.shape), 1)
    with pytest.raises(UserError, match="two or more increasing numbers"):
        faithfulness_curve(model, PAIRS, scores, (0.5, 0.1))
    with pytest.raises(UserError, match="unknown method"):
        faithfulness_curve(model, PAIRS, scores, method="best")


def test_attention_whose_inputs_cannot_be_split_is_refused() -> None:
    """TransformerLens refuses GPT-Neo by an error of its own, which the user does not get to see."""
    with pytest.raises(UserError, match="no separate inputs"):
        edge_attribution(tiny("gpt_neo"), PAIRS[:1])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_edges_of_a_rule_add_up_to_what_its_gradient_says_of_the_writer(family: str) -> None:
    """One step of a rule: edges that leave a writer, summed over readers, are the writer's own estimate."""
    model = tiny(family)
    for rule in ("relp", "gim"):
        scores = edge_attribution(model, PAIRS, steps=1, rule=rule)
        nodes = attribution_patching(model, PAIRS, ["head", "mlp"], rule=rule)
        for row in nodes.to_dict("records"):
            name = f"L{row['layer']}.mlp" if pd.isna(row["head"]) else f"L{row['layer']}.H{row['head']}"
            found = float(scores.values[scores.graph.writer(name)].sum())
            assert found == pytest.approx(row["effect"], abs=1e-4 * float(nodes["effect"].abs().max()))
        assert float(scores.values.abs().max()) > 0
        queries = [i for i, reader in enumerate(scores.graph.readers) if reader.endswith((".q", ".k"))]
        assert bool(scores.values[:, queries].any()) == (rule == "gim")
