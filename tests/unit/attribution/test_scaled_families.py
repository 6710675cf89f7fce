"""Attribution of models that multiply logits (Cohere, Granite) or branches (Granite), and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from lensprune.attribution import (
    EdgeGraph,
    PromptPair,
    activation_patching,
    attribution_patching,
    circuit_metrics,
    direct_and_total_effects,
    direct_logit_attribution,
    dla,
    edge_attribution,
    logit_lens,
    path_effect,
    path_patching,
    source_attribution,
    writers,
)
from lensprune.attribution.circuits import Circuit
from lensprune.attribution.runs import capture, edge_inputs, edit_hook, last_logits, run_hooked
from lensprune.attribution.writers import replace_edges
from lensprune.errors import LensPruneError, UserError
from lensprune.models.base import HookedModel
from tests.helpers.attribution import PAIRS, UNEVEN, difference, logit_size, metric, writes
from tests.helpers.families import SCALED_FAMILIES
from tests.helpers.tiny_models import double, tiny
from tests.helpers.tolerances import assert_tensors_agree, assert_zero, size_of

SAME = [PromptPair(pair.clean, pair.clean, pair.answer, pair.wrong) for pair in UNEVEN]
GRANITE = ("granite", "granitemoe")
COHERE = ("cohere", "cohere2")


@pytest.mark.parametrize("family", SCALED_FAMILIES)
def test_contributions_add_up_to_the_logit_difference(family: str) -> None:
    model = tiny(family)
    found = direct_logit_attribution(model, UNEVEN)
    expected = torch.tensor([metric(model, pair, pair.clean) for pair in UNEVEN])
    assert_tensors_agree(found.logit_difference, expected, torch.float32, size=logit_size(model), terms=2)
    # These models have no bias at all, so that all that attention adds is its heads'.
    biases = found.values[found.parts.index[found.parts["part"].str.contains("bias")].tolist()]
    assert float(biases.abs().max()) < 1e-5 * float(found.values.abs().max())


@pytest.mark.parametrize("family", SCALED_FAMILIES)
def test_a_heads_contribution_by_hand(family: str) -> None:
    """z · W_O · residual_multiplier, through the final norm at its scale, to two rows of the unembedding and times the
    factor on logits, out of the weights and the configuration as transformers has them."""
    model, pair = tiny(family), PAIRS[0]
    last = model.facts.n_layers - 1
    names = ["blocks.1.attn.hook_z", f"blocks.{last}.hook_resid_post"]
    _, kept = capture(model, torch.tensor([pair.clean]), names)
    z, final = (kept[name][0, -1] for name in names)
    raw: Any = model.raw_model
    config, width = raw.config, model.facts.d_head
    written = raw.model.layers[1].self_attn.o_proj.weight.detach()[:, 2 * width : 3 * width] @ z[2]
    if family in GRANITE:
        written = written * config.residual_multiplier / final.square().mean().sqrt()
        factor = 1 / config.logits_scaling
    else:
        written = (written - written.mean()) / final.std(correction=0)
        factor = config.logit_scale
    rows = raw.lm_head.weight.detach()
    expected = float((written * raw.model.norm.weight.detach()) @ (rows[pair.answer] - rows[pair.wrong])) * factor
    table = direct_logit_attribution(model, [pair]).table()
    size = logit_size(model)
    assert_tensors_agree(table[table["part"] == "L1.H2"]["value"].iloc[0], expected, torch.float32, size=size, terms=2)
    sources = source_attribution(model, pair, [(1, 2)])
    assert_tensors_agree(sources["value"].sum(), expected, torch.float32, size=size, terms=2)


@pytest.mark.parametrize("family", SCALED_FAMILIES)
def test_lens_ends_in_the_models_answer(family: str) -> None:
    model = tiny(family)
    expected = np.mean([metric(model, pair, pair.clean) for pair in UNEVEN])
    found = logit_lens(model, UNEVEN)["logit_difference"].iloc[-1]
    assert_tensors_agree(found, expected, torch.float32, size=logit_size(model), terms=2)


@pytest.mark.parametrize("family", [*SCALED_FAMILIES, "llama", "gpt_neox"])
def test_a_prompt_against_itself_has_no_effect(family: str) -> None:
    model = tiny(family)
    for found in (
        path_patching(model, SAME)["effect"],
        path_effect(model, SAME, ["embed", "logits"]),
        path_effect(model, SAME, ["L0.H1", "L1.H2.k", "logits"]),
    ):
        assert_zero(found, torch.float32, size=logit_size(model), terms=4, at_most=1e-6)


@pytest.mark.parametrize("family", [*SCALED_FAMILIES, "llama", "gpt_neox"])
def test_behind_the_last_layer_direct_is_total(family: str) -> None:
    model = tiny(family)
    direct = path_patching(model, UNEVEN, "logits", ["L2.mlp"])["effect"].iloc[0]
    total = activation_patching(model, UNEVEN, ["mlp"])
    assert abs(direct) > 1e-4
    expected = total[total["layer"] == 2]["effect"].iloc[0]
    size = logit_size(model)
    assert_tensors_agree(direct, expected, torch.float32, size=size, terms=4)
    if model.facts.parallel_attn_mlp:
        heads = direct_and_total_effects(model, UNEVEN)
        assert_zero(heads[heads["layer"] == 2]["self_repair"], torch.float32, size=size, terms=4)


@pytest.mark.parametrize("family", GRANITE)
def test_one_edge_and_every_edge(family: str) -> None:
    model = tiny(family)
    graph, tokens, _, corrupt = writes(model)
    expected = last_logits(model, torch.tensor([PAIRS[0].corrupt]))
    everything = replace_edges(model, graph, tokens, graph.edges[None], corrupt)
    assert_tensors_agree(everything, expected, torch.float32)
    one = replace_edges(model, graph, tokens, graph.mask([("L0.H1", "logits")])[None], corrupt)
    direct = path_patching(model, PAIRS[:1], "logits", ["L0.H1"])["effect"].iloc[0]
    expected = difference(one) - difference(last_logits(model, tokens))
    assert_tensors_agree(direct, expected, torch.float32, size=logit_size(model), terms=4)


def test_edges_out_of_a_part_sum_to_its_node_attribution() -> None:
    """Nodes are measured at z, in front of W_O and of the factor on branches, edges behind both."""
    model = double("granite")
    scores = edge_attribution(model, PAIRS, steps=1)
    out = scores.values.sum(1)
    for row in attribution_patching(model, PAIRS, ["head"]).to_dict("records"):
        writer = scores.graph.writer(f"L{row['layer']}.H{row['head']}")
        found = float(out[writer])
        size, terms = size_of(scores.values), scores.values.shape[1]
        # Gradients pass through float32 norms.
        assert_tensors_agree(found, row["effect"], torch.float32, size=size, terms=terms)


@pytest.mark.parametrize("family", SCALED_FAMILIES)
def test_the_inputs_of_all_heads_moved_are_the_residual_stream_moved(family: str) -> None:
    model = tiny(family)
    tokens = torch.tensor([PAIRS[0].clean])
    change = torch.randn(1, tokens.shape[1], model.facts.d_model, generator=torch.Generator().manual_seed(0)).to(
        model.facts.device
    )
    found = []
    for names in (["hook_resid_pre"], ["attn.hook_q_input", "attn.hook_k_input", "attn.hook_v_input"]):

        def move(activation: torch.Tensor) -> torch.Tensor:
            return activation + (change if activation.ndim == 3 else change[:, :, None])

        def look(z: torch.Tensor) -> None:
            found.append(z.clone())

        hooks = [(f"blocks.2.{name}", edit_hook(move)) for name in names]
        with torch.no_grad(), edge_inputs(model):
            run_hooked(model, tokens, [*hooks, ("blocks.2.attn.hook_z", edit_hook(look))])
    assert_tensors_agree(found[1], found[0], torch.float32)


@pytest.mark.parametrize("family", COHERE)
def test_edges_into_mlps_without_an_input_of_their_own_are_refused(family: str) -> None:
    model = tiny(family)
    whole = Circuit(EdgeGraph.of(model.facts), EdgeGraph.of(model.facts).edges, 1)
    assert path_patching(model, PAIRS, "L2.H0.q")["effect"].abs().max() > 1e-6
    for method in (
        lambda: path_patching(model, PAIRS, "L2.mlp"),
        lambda: path_effect(model, PAIRS, ["L0.H1", "L1.mlp", "logits"]),
        lambda: edge_attribution(model, PAIRS),
        lambda: circuit_metrics(model, PAIRS, [whole]),
    ):
        with pytest.raises(UserError, match=r"no separate inputs at blocks.*hook_mlp_in"):
            method()


@pytest.mark.parametrize("family", GRANITE)
def test_an_unknown_factor_on_branches_is_refused(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(family)
    graph, _, _, _ = writes(model)
    whole = Circuit(graph, graph.edges, graph.n_edges)

    def unscaled(model: HookedModel, layer: int) -> torch.Tensor:
        return model.module.blocks[layer].attn.W_O

    for module in (dla, writers):
        monkeypatch.setattr(module, "output_weights", unscaled)
    for method in (
        lambda: direct_logit_attribution(model, PAIRS[:1]),
        lambda: source_attribution(model, PAIRS[0]),
    ):
        with pytest.raises(LensPruneError, match="not the sum of its heads and a bias"):
            method()
    for method in (
        lambda: path_patching(model, PAIRS),
        lambda: path_effect(model, PAIRS, ["L0.H1", "logits"]),
        lambda: edge_attribution(model, PAIRS),
        lambda: circuit_metrics(model, PAIRS, [whole]),
    ):
        with pytest.raises(LensPruneError, match="not the sum of its parts"):
            method()


def _head_that_looks_elsewhere(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
    return output * (1 + output.shape[1])


def _head_that_is_not_linear(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
    return output + output.square()


def test_a_head_of_another_form_is_refused() -> None:
    model = tiny("llama")
    before = logit_lens(model, PAIRS)
    with model.module.ln_final.register_forward_hook(_head_that_looks_elsewhere):
        for method in (
            lambda: logit_lens(model, PAIRS),
            lambda: path_patching(model, PAIRS),
            lambda: path_effect(model, PAIRS, ["L0.H1", "logits"]),
        ):
            with pytest.raises(LensPruneError, match="do not equal the readout of its final residual stream"):
                method()
    with model.module.unembed.register_forward_hook(_head_that_is_not_linear):
        for method in (
            lambda: direct_logit_attribution(model, PAIRS),
            lambda: source_attribution(model, PAIRS[0]),
        ):
            with pytest.raises(LensPruneError, match="do not equal the readout of its final residual stream"):
                method()
    pd.testing.assert_frame_equal(logit_lens(model, PAIRS), before)


def _shown_beside_the_computation(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
    return output.detach()


def test_a_branch_without_a_gradient_is_refused() -> None:
    model = tiny("llama")
    with (
        model.module.blocks[1].mlp.register_forward_hook(_shown_beside_the_computation),
        pytest.raises(UserError, match=r"no gradient at blocks\.1\.hook_mlp_out"),
    ):
        attribution_patching(model, PAIRS, ["mlp"])
