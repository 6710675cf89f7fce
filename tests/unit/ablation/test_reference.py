"""Mean and resample ablation against hand-computed values; user hooks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lensprune.ablation import (
    MLP,
    Ablation,
    BatchState,
    Head,
    Layer,
    ReferenceActivations,
    Variant,
    VariantHooks,
    collect_reference,
)
from lensprune.ablation.recorded import ordinary_positions
from lensprune.errors import HookNeverFired, UserError
from lensprune.models.base import HookedModel
from tests.helpers.tiny_models import tiny
from tests.helpers.tolerances import assert_close, assert_tensors_agree, equal, size_of

PROMPTS = [[10, 11, 12, 13], [20, 21, 22], [30, 31, 32, 33, 34, 35]]


def activation(model: HookedModel, prompt: list[int], name: str) -> torch.Tensor:
    kept: list[torch.Tensor] = []
    ids = torch.tensor([prompt])
    with torch.inference_mode(), model.hooks([(name, lambda value, hook: kept.append(value[0].clone()))]):
        model.forward(ids, torch.ones_like(ids), torch.arange(len(prompt))[None])
    return kept[0]


def seen_after(model: HookedModel, variant: Variant, reference: ReferenceActivations, name: str) -> torch.Tensor:
    """Activation at `name` on a left-padded batch, as the rest of the model receives it."""
    kept: list[torch.Tensor] = []

    def keep(value: torch.Tensor, hook: Any) -> None:
        kept.append(value.clone())

    ids = torch.tensor([[3, 3, 40, 41, 42], [50, 51, 52, 53, 54]], device=model.facts.device)
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]], device=model.facts.device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    hooks = VariantHooks(model, variant, BatchState(positions), reference)
    with torch.inference_mode(), model.hooks([*hooks.named, (name, keep)]):
        model.forward(ids, mask, positions)
    return kept[0]


SITE = "blocks.1.hook_mlp_out"


def test_pooled_mean_is_over_ordinary_positions_and_the_first_token_has_its_own() -> None:
    model = tiny("llama")
    variant = Variant("m", (Ablation(MLP(1), "mean"),))
    reference = collect_reference(model, PROMPTS, [variant])
    rows = [activation(model, p, SITE).double() for p in PROMPTS]
    first = torch.stack([row[0] for row in rows]).mean(0).float()
    others = torch.cat([row[1:] for row in rows]).mean(0).float()
    assert (first - others).norm() > 0.1 * others.norm() > 0
    after = seen_after(model, variant, reference, SITE)
    assert_close(after[1, 0], first)
    assert_close(after[1, 1:], others.expand_as(after[1, 1:]))
    # Two pads in front: the first token is the row's third.
    assert_close(after[0, 2], first)
    assert_close(after[0, 3:], others.expand_as(after[0, 3:]))


def test_sinks_are_the_first_token_and_those_of_an_outlying_norm_behind_any_block() -> None:
    norms = torch.tensor([[1.0, 2.0, 3.0, 20.0, 20.1], [5.0, 5.0, 49.0, 51.0, 5.0]])
    norms[0, 4] = 30.1
    assert ordinary_positions(norms).tolist() == [False, True, True, False, False]
    assert ordinary_positions(torch.tensor([[4.0]])).tolist() == [False]


def test_a_massive_activation_is_left_out_of_the_pooled_mean() -> None:
    """One token's embedding is made so large that the residual stream's norm stands out."""
    model = tiny("llama")
    weights = model.module.get_input_embeddings().weight if hasattr(model.module, "get_input_embeddings") else None
    weights = weights if weights is not None else model.module.embed.weight
    variant = Variant("m", (Ablation(MLP(1), "mean"),))
    kept = weights.data[21].clone()
    try:
        weights.data[21] = kept * 1000
        reference = collect_reference(model, PROMPTS, [variant])
        rows = [activation(model, p, SITE).double() for p in PROMPTS]
    finally:
        weights.data[21] = kept
    usual = torch.cat([rows[0][1:], rows[1][2:], rows[2][1:]]).mean(0).float()
    assert_close(reference.pooled[SITE], usual)
    assert (torch.cat([row[1:] for row in rows]).mean(0).float() - usual).norm() > 1e-3 * usual.norm()


def test_prompts_of_one_token_have_no_ordinary_positions() -> None:
    model = tiny("llama")
    variant = Variant("m", (Ablation(MLP(1), "mean"),))
    reference = collect_reference(model, [[10], [20]], [variant])
    expected = torch.stack([activation(model, p, SITE)[0] for p in ([10], [20])]).mean(0)
    assert_close(reference.mean(SITE, torch.tensor([0, 1])), expected.expand(2, -1))


def test_one_mean_over_all_positions_on_request() -> None:
    model = tiny("llama")
    variant = Variant("m", (Ablation(MLP(1), "mean"),))
    reference = collect_reference(model, PROMPTS, [variant], mode="pooled_all")
    rows = [activation(model, p, "blocks.1.hook_mlp_out") for p in PROMPTS]
    expected = torch.cat(rows).double().mean(0).float()
    assert_close(reference.pooled["blocks.1.hook_mlp_out"], expected)
    after = seen_after(model, variant, reference, "blocks.1.hook_mlp_out")
    assert_close(after, expected.expand_as(after))


def test_mean_per_position_and_its_rule_past_the_last_calibrated_one() -> None:
    model = tiny("llama")
    variant = Variant("m", (Ablation(Head(1, 3), "mean"),))
    reference = collect_reference(model, PROMPTS, [variant], mode="per_position")
    rows = [activation(model, p, "blocks.1.attn.hook_z") for p in PROMPTS]
    # Position 3 is reached by two prompts, position 4 by one only: calibrated are 0 to 3.
    table = reference.per_position["blocks.1.attn.hook_z"]
    assert len(table) == 4
    assert_close(table[3], (rows[0][3] + rows[2][3]) / 2)
    positions = torch.tensor([[0, 3, 4, 100]])
    mean = reference.mean("blocks.1.attn.hook_z", positions)[0]
    assert_close(mean[1], table[3])
    pooled = torch.cat([row[1:] for row in rows]).double().mean(0).float()
    assert_close(mean[2], pooled)
    assert_close(mean[3], pooled)


def test_padding_uses_row_positions() -> None:
    model = tiny("llama")
    variant = Variant("m", (Ablation(Head(1, 3), "mean"),))
    reference = collect_reference(model, PROMPTS, [variant], mode="per_position")
    after = seen_after(model, variant, reference, "blocks.1.attn.hook_z")
    table = reference.per_position["blocks.1.attn.hook_z"]
    assert_close(after[0, 2:, 3], table[:3, 3])
    assert_close(after[1, :4, 3], table[:4, 3])


def test_layer_mean_replaces_the_contribution() -> None:
    model = tiny("llama")
    variant = Variant("m", (Ablation(Layer(1), "mean"),))
    reference = collect_reference(model, PROMPTS, [variant], mode="pooled_all")
    deltas = [
        activation(model, p, "blocks.1.hook_resid_post") - activation(model, p, "blocks.1.hook_resid_pre")
        for p in PROMPTS
    ]
    expected = torch.cat(deltas).double().mean(0).float()
    before = seen_after(model, variant, reference, "blocks.1.hook_resid_pre")
    after = seen_after(model, variant, reference, "blocks.1.hook_resid_post")
    # A difference of residual streams: rounding scales with them.
    assert_tensors_agree(after - before, expected.expand_as(after), torch.float32, size=size_of(after, before))


def test_resample_donor_is_fixed_by_seed_and_wraps_past_its_end() -> None:
    model = tiny("llama")
    variant = Variant("r", (Ablation(MLP(1), "resample"),))
    one, again = (collect_reference(model, PROMPTS, [variant], donor_seed=0).donor for _ in range(2))
    torch.testing.assert_close(one, again, rtol=0, atol=0)
    reference = collect_reference(model, [PROMPTS[1]], [variant])
    donor = activation(model, PROMPTS[1], "blocks.1.hook_mlp_out")
    values = reference.resample("blocks.1.hook_mlp_out", torch.tensor([0, 1, 2, 3, 4, 5]))
    assert_close(values, donor[[0, 1, 2, 1, 2, 1]])


def test_reference_is_required_and_must_not_be_empty() -> None:
    model = tiny("llama")
    variant = Variant("m", (Ablation(MLP(1), "mean"),))
    with pytest.raises(UserError, match="needs reference"):
        VariantHooks(model, variant, BatchState())
    with pytest.raises(UserError, match="has 513 tokens, and the context of llama holds 512"):
        collect_reference(model, [[10], [11] * 513], [variant])
    with pytest.raises(UserError, match="there are none"):
        collect_reference(model, [], [variant])
    with pytest.raises(UserError, match="pooled"):
        collect_reference(model, PROMPTS, [variant], mode="poled")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["blocks.1.hook_resid_pre", "blocks.1.attn.hook_pattern", "blocks.1.attn.hook_z"])
def test_user_hooks_change_the_logits(name: str) -> None:
    model = tiny("llama")
    ids = torch.tensor([PROMPTS[2]], device=model.facts.device)
    positions = torch.arange(ids.shape[1], device=ids.device)[None]
    variant = Variant("mine", hooks=((name, lambda value, hook: value * 0.5),))
    hooks = VariantHooks(model, variant, BatchState(positions))
    with torch.inference_mode():
        clean = model.forward(ids, torch.ones_like(ids), positions)
        with model.hooks(hooks.named):
            changed = model.forward(ids, torch.ones_like(ids), positions)
        again = model.forward(ids, torch.ones_like(ids), positions)
    hooks.check_fired()
    assert (changed - clean).abs().max() > 1e-4
    assert equal(again, clean)


def test_unknown_hook_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"blocks\.1\.attn\.hook_z"):
        VariantHooks(
            tiny("llama"), Variant("mine", hooks=(("blocks.1.attn.hook_zz", lambda v, hook: v),)), BatchState()
        )


def test_hook_that_never_fires_is_an_error() -> None:
    hooks = VariantHooks(tiny("llama"), Variant("v", (Ablation(MLP(1), "zero"),)), BatchState())
    with pytest.raises(HookNeverFired, match=r"blocks\.1\.hook_mlp_out"):
        hooks.check_fired()
