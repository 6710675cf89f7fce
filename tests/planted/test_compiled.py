"""Programs compiled to weights by tracr: the circuit that is found is the circuit that was compiled."""

from __future__ import annotations

import random
from itertools import product

import pandas as pd
import pytest
import torch

from lensprune.ablation import Variant, each_head, each_mlp
from lensprune.attribution import (
    Circuit,
    activation_patching,
    attribution_patching,
    circuit_metrics,
    edge_attribution,
    path_patching,
)
from lensprune.attribution.graph import EdgeGraph
from lensprune.engine.registry import make_executor
from lensprune.protocols.requests import GenerateRequest, LoglikelihoodRequest
from tests.helpers.planted.circuits import LEAK
from tests.helpers.planted.compiled import N_HEADS, PROGRAMS, compiled, program
from tests.helpers.planted.rasp_programs import answers, counterfactuals, token_ids

THRESHOLD = 0.01
"""Logits, where the right answer leads by 10: above is found, below is not."""
PAIRS = 24


def node(layer: int, head: int | None) -> str:
    return f"L{layer}.mlp" if pd.isna(head) else f"L{layer}.H{head}"


def nodes_above(frame: pd.DataFrame) -> set[str]:
    return {node(row.layer, row.head) for row in frame.itertuples() if abs(row.effect) > THRESHOLD}


def edges_above(name: str, softness: float, steps: int) -> set[tuple[str, str]]:
    model = compiled(name, softness)
    table = edge_attribution(model, counterfactuals(model, name, PAIRS), steps=steps, batch_size=PAIRS).table()
    return {(row.source, row.target) for row in table.itertuples() if abs(row.effect) > THRESHOLD}


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_model_computes_the_program_on_every_input(name: str) -> None:
    model, own = compiled(name), program(name)
    words, length = own.facts["words"], own.facts["length"]
    # Of six letters all texts of five.
    texts = list(product(words, repeat=min(length, 5) if len(words) > 4 else length))
    index = {word: i for i, word in enumerate(own.vocabulary)}
    for start in range(0, len(texts), 2048):
        part = texts[start : start + 2048]
        tokens = torch.tensor([token_ids(model, text) for text in part])
        positions = torch.arange(tokens.shape[1]).expand(len(part), -1)
        with torch.inference_mode():
            found = model.forward(tokens, torch.ones_like(tokens), positions)[:, 1:]
        expected = torch.zeros_like(found)
        for row, text in enumerate(part):
            for place in range(len(text)):
                values = answers(name, text, place)
                for value in values:
                    expected[row, place, index[value]] += 10.0 / len(values)
        torch.testing.assert_close(found, expected, atol=10 * LEAK, rtol=0)


@pytest.mark.parametrize("executor", ["hooked", "forked"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_removal_costs_exactly_where_something_was_compiled(name: str, executor: str) -> None:
    model, own = compiled(name), program(name)
    generator = random.Random(1)
    # Generation needs a place for the answer.
    size = own.facts["length"] - 1
    texts: list[list[str]] = []
    while len(texts) < 40:
        text = [generator.choice(own.facts["words"]) for _ in range(size)]
        if len(set(answers(name, text, size - 1))) == 1:
            texts.append(text)
    right = [answers(name, text, size - 1)[0] for text in texts]
    generate = [GenerateRequest(token_ids(model, text), (), 1) for text in texts]
    encode = model.tokenizer.convert_tokens_to_ids
    likely = [
        LoglikelihoodRequest(token_ids(model, text), (encode(answer),))
        for text, answer in zip(texts, right, strict=True)
    ]
    variants = [Variant("clean"), *each_head(model, "zero"), *each_mlp(model, "zero")]
    assert len(variants) == 1 + own.n_layers * (N_HEADS + 1)
    needed = set()
    generated = make_executor(executor, model).run(generate, variants)
    scored = make_executor(executor, model).run(likely, variants)
    clean: list[float] = []
    for texts_of, answered in zip(generated, scored, strict=True):
        accuracy = sum(r.text == answer for r, answer in zip(texts_of.responses, right, strict=True)) / len(right)
        logprobs = [r.logprob for r in answered.responses]
        variant = answered.variant
        if variant.name == "clean":
            assert accuracy == 1
            clean = logprobs
        elif accuracy < 1:
            needed.add(node(variant.layer, variant.head))
        else:
            assert logprobs == pytest.approx(clean, abs=LEAK)
    assert needed == own.nodes


@pytest.mark.parametrize("name", PROGRAMS)
def test_activation_patching_finds_exactly_the_compiled_parts(name: str) -> None:
    model = compiled(name)
    frame = activation_patching(model, counterfactuals(model, name, PAIRS), ["head", "mlp"])
    assert len(frame) == program(name).n_layers * (N_HEADS + 1)
    assert nodes_above(frame) == program(name).nodes
    assert frame["effect"].abs().loc[frame["effect"].abs() > THRESHOLD].min() > 1


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_path_patching_finds_exactly_the_compiled_edges(name: str) -> None:
    model = compiled(name)
    pairs = counterfactuals(model, name, PAIRS)
    graph = EdgeGraph.of(model.facts)
    table = pd.concat([path_patching(model, pairs, receiver) for receiver in graph.readers])
    assert len(table) == graph.n_edges
    found = table[table["effect"].abs() > THRESHOLD]
    assert set(zip(found["sender"], found["receiver"], strict=True)) == program(name).edges()
    assert found["effect"].max() < -0.5


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_compiled_circuit_is_faithful_and_every_edge_of_it_is_needed(name: str) -> None:
    model = compiled(name)
    pairs = counterfactuals(model, name, PAIRS)
    graph, edges = EdgeGraph.of(model.facts), sorted(program(name).edges())
    circuits = [edges, *([other for other in edges if other != edge] for edge in edges)]
    measured = circuit_metrics(model, pairs, [Circuit(graph, graph.mask(own), len(own)) for own in circuits])
    whole, *without = measured.faithfulness
    assert whole == pytest.approx(1, abs=LEAK)
    assert max(without) < 0.91


@pytest.mark.parametrize("name", ["induction", "pair"])
def test_gradients_find_exactly_the_compiled_parts_where_attention_is_soft(name: str) -> None:
    model = compiled(name, 10)
    frame = attribution_patching(model, counterfactuals(model, name, PAIRS), ["head", "mlp"])
    assert nodes_above(frame) == program(name).nodes
    for steps in (1, 5):
        assert edges_above(name, 10, steps) == program(name).edges()


@pytest.mark.parametrize("name", ["count", "peers"])
def test_steps_of_an_mlp_need_many_points_of_the_integral(name: str) -> None:
    # The gradient of a step is 0 almost everywhere: one or a few points of the integral miss it.
    last = (f"L{program(name).n_layers - 1}.mlp", "logits")
    assert edges_above(name, 10, 1) == {last}
    assert edges_above(name, 10, 20) == program(name).edges()


@pytest.mark.parametrize("name", PROGRAMS)
def test_gradients_lose_what_saturated_attention_hides_and_invent_nothing(name: str) -> None:
    found = edges_above(name, 1, 1)
    scores = {edge for edge in program(name).edges() if edge[1].endswith((".q", ".k"))}
    assert not found & scores
    assert found < program(name).edges() if scores else found == program(name).edges()
    model = compiled(name)
    frame = attribution_patching(model, counterfactuals(model, name, PAIRS), ["head", "mlp"])
    reached = {"induction": {"L1.H0"}, "pair": program(name).nodes, "count": {"L0.mlp"}, "peers": {"L1.mlp"}}
    assert nodes_above(frame) == reached[name]
