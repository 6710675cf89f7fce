"""Head functions and attribution on the real model: what is known of such models must show."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lensprune.attribution import (
    activation_patching,
    attribution_patching,
    circuit_metrics,
    counterfactual_pairs,
    direct_logit_attribution,
    edge_attribution,
    greedy_circuit,
    logit_lens,
    path_patching,
)
from lensprune.attribution.runs import last_logits
from lensprune.heads import head_scores, top_heads
from lensprune.models import as_hooked_model
from tests.helpers.tolerances import assert_tensors_agree, size_of


def test_heads_of_known_kinds_exist(smollm2: Any) -> None:
    frame = head_scores(smollm2, ["previous_token", "induction", "duplicate_token", "attention_sink"], sequences=4)
    best = top_heads(frame, 1).set_index("score")["value"]
    assert best["previous_token"] > 0.8
    assert best["induction"] > 0.8
    assert best["duplicate_token"] > 0.6
    assert best["attention_sink"] > 0.8
    # Induction heads compose with earlier heads, so none is in the first layers.
    induction = frame[frame["score"] == "induction"]
    assert induction[induction["layer"] < 8]["value"].max() < 0.2


@pytest.fixture(scope="module")
def pairs(smollm2: Any) -> list:
    return counterfactual_pairs(smollm2, "kv_retrieval[pairs=3]", limit=2, shots=0)


def test_the_answers_decompose(smollm2: Any, pairs: list) -> None:
    found = direct_logit_attribution(smollm2, pairs)
    lens = logit_lens(smollm2, pairs)
    model = as_hooked_model(smollm2)
    size = size_of(*(last_logits(model, torch.tensor([pair.clean])) for pair in pairs))
    expected = lens["logit_difference"].iloc[-1]
    assert_tensors_agree(found.logit_difference.mean(), expected, torch.float32, size=size, terms=2)
    assert lens["logit_difference"].iloc[-1] > 1


def test_estimates_rank_what_patching_measures(smollm2: Any, pairs: list) -> None:
    estimated = attribution_patching(smollm2, pairs[:1], ["attention"])
    exact = activation_patching(smollm2, pairs[:1], ["attention"])
    assert estimated["effect"].corr(exact["effect"], method="pearson") > 0.8
    direct = path_patching(smollm2, pairs[:1], "logits")
    assert len(direct) == 1 + 30 * 10


def test_a_fiftieth_of_the_edges_answers(smollm2: Any, pairs: list) -> None:
    scores = edge_attribution(smollm2, pairs[:1], steps=2, batch_size=1)
    circuits = [greedy_circuit(scores, scores.graph.n_edges // share) for share in (50, 1)]
    measured = circuit_metrics(smollm2, pairs[1:], circuits)
    assert measured.faithfulness[1] == pytest.approx(1, abs=1e-2)
    assert measured.faithfulness[0] > 0.5
