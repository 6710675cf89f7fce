"""Edge scores and faithfulness against TransformerLens's own tools, on the models that those take."""

from __future__ import annotations

from collections import defaultdict

import pandas as pd
import pytest
import torch

from lensprune.attribution import attribution_patching, circuit_metrics, edge_attribution
from lensprune.attribution.circuits import Circuit
from lensprune.attribution.graph import EdgeGraph
from lensprune.models.base import HookedModel
from tests import DEVICE
from tests.helpers.attribution import PAIRS, logit_size
from tests.helpers.tiny_models import tiny
from tests.helpers.tolerances import assert_tensors_agree

tools = pytest.importorskip("transformer_lens.tools.analysis")
if not hasattr(tools, "faithfulness"):
    pytest.skip("this TransformerLens has no edge scores yet", allow_module_level=True)

_SLOTS = {"q_input": "q", "k_input": "k", "v_input": "v"}


def name(node) -> str:
    """A node of TransformerLens by our name."""
    if node.kind in ("embed", "logits"):
        return node.kind
    if node.kind in ("mlp_out", "mlp_in"):
        return f"L{node.layer}.mlp"
    slot = _SLOTS.get(node.kind)
    return f"L{node.layer}.H{node.head}" + (f".{slot}" if slot else "")


def tokens() -> tuple[torch.Tensor, torch.Tensor]:
    clean, corrupt = (torch.tensor([own], device=DEVICE) for own in (PAIRS[0].clean, PAIRS[0].corrupt))
    return clean, corrupt


def metric(logits: torch.Tensor) -> torch.Tensor:
    return logits[0, -1, PAIRS[0].answer] - logits[0, -1, PAIRS[0].wrong]


def assert_same(model: HookedModel, found: float | list[float], expected: float | list[float]) -> None:
    assert_tensors_agree(found, expected, torch.float32, size=logit_size(model), terms=4)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_node_scores(family: str) -> None:
    """Theirs point from corrupt to clean with the gradient at the corrupt run: our ``denoise``."""
    model = tiny(family)
    clean, corrupt = tokens()
    theirs = tools.attribution_patch(model.module, clean, corrupt, metric, tools.EdgeAttributionConfig("node"))
    sums: dict[str, float] = defaultdict(float)
    for node, score in theirs.node_scores.items():
        sums[name(node)] += score
    ours = attribution_patching(model, PAIRS[:1], ["head", "mlp"], direction="denoise")
    for row in ours.to_dict("records"):
        own = f"L{row['layer']}.mlp" if pd.isna(row["head"]) else f"L{row['layer']}.H{row['head']}"
        assert_same(model, row["effect"], sums[own])


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_faithfulness_of_a_circuit(family: str) -> None:
    model = tiny(family)
    graph = EdgeGraph.of(model.facts)
    scores = edge_attribution(model, PAIRS[:1], steps=3)
    chosen = scores.values.abs().flatten().topk(40).indices
    kept = torch.zeros(graph.edges.numel(), dtype=torch.bool)
    kept[chosen] = True
    kept = kept.view_as(graph.edges)
    ours = circuit_metrics(model, PAIRS[:1], [Circuit(graph, kept, 40)])
    clean, corrupt = tokens()
    every = tools.attribution_patch(model.module, clean, corrupt, metric, tools.EdgeAttributionConfig("edge"))
    wanted = {(graph.writers[w], graph.readers[r]) for w, r in kept.nonzero().tolist()}
    circuit = [edge for edge in every.edge_scores if (name(edge[0]), name(edge[1])) in wanted]
    theirs = tools.faithfulness(model.module, clean, corrupt, metric, circuit)
    assert {(name(a), name(b)) for a, b in circuit} == wanted
    assert theirs.circuit_size == 40 * clean.shape[1]
    assert_same(model, ours.clean, theirs.full_metric)
    assert_same(model, ours.corrupt, theirs.corrupt_metric)
    change = abs(ours.clean - ours.corrupt)
    assert_same(model, ours.faithfulness[0] * change, theirs.recovered * change)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_edge_scores(family: str) -> None:
    """Swapping the prompts turns our run into theirs; the sign turns with it."""
    model = tiny(family)
    clean, corrupt = tokens()
    swapped = [type(PAIRS[0])(PAIRS[0].corrupt, PAIRS[0].clean, PAIRS[0].answer, PAIRS[0].wrong)]
    ours = edge_attribution(model, swapped, steps=1)
    theirs = tools.attribution_patch(model.module, clean, corrupt, metric, tools.EdgeAttributionConfig("edge"))
    sums: dict[tuple[str, str], float] = defaultdict(float)
    for (source, target), score in theirs.edge_scores.items():
        sums[name(source), name(target)] += score
    assert len(sums) == ours.graph.n_edges
    found = [float(ours.values[ours.graph.writer(source), ours.graph.reader(target)]) for source, target in sums]
    assert_same(model, found, list(sums.values()))
