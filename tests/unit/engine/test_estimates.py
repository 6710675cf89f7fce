"""Estimates of removing a head are the derivative along the way from its activation to the ablated one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lensprune.ablation.collect import collect_reference
from lensprune.ablation.hooks import BatchState, VariantHooks
from lensprune.ablation.reference import ReferenceActivations
from lensprune.ablation.variants import CLEAN, Variant, each_head, each_kv_group, each_layer
from lensprune.engine import HookedExecutor
from lensprune.engine.estimates import estimate_logprobs
from lensprune.errors import UserError
from lensprune.models.base import HookedModel
from lensprune.protocols.requests import LoglikelihoodRequest, LoglikelihoodResponse
from tests.helpers.families import FAMILIES
from tests.helpers.tiny_models import double, tiny
from tests.helpers.tolerances import assert_close, assert_tensors_agree, precision, rounding, size_of

# Without the padding token, whose embedding is 0: there the norm has no usable derivative.
REQUESTS = [
    LoglikelihoodRequest((13, 5, 7, 11), (2, 9)),
    LoglikelihoodRequest((4, 6), (8,)),
    LoglikelihoodRequest((1, 2, 13, 4, 5, 6, 7), (13, 1, 4)),
]
PROMPTS = [(9, 8, 7, 6, 5), (20, 30, 40)]
STEP = 3e-3
"""Half the width of a central difference. Its error is step² (1e-5) of the third derivative, plus the rounding of its
ends over the step: norms and softmaxes compute in float32 whatever the model's type, and round each end on its own.
A step near the cube root of float32's 1e-7 balances the two."""
CURVATURE = 0.03
"""Share of a derivative by which a central difference may be off; a wrong place, sign or factor costs half or more."""


def reference_for(model: HookedModel, variants: list[Variant]) -> ReferenceActivations | None:
    if not any(v.needs_reference for v in variants):
        return None
    return collect_reference(model, PROMPTS, variants, mode="pooled", donor_seed=0)


def logprobs(model: HookedModel, variant: Variant) -> torch.Tensor:
    # One row per batch: the hooks of a test know no padding.
    [answered] = HookedExecutor(model, max_tokens=1).run(REQUESTS, [variant])
    values = [r.logprob for r in answered.responses if isinstance(r, LoglikelihoodResponse)]
    return torch.tensor(values, dtype=torch.float64)


def part_of_the_way(model: HookedModel, variant: Variant, reference: Any, share: float) -> Variant:
    state = BatchState()
    [(site, replaced)] = VariantHooks(model, variant, state, reference).named

    def step(activation: torch.Tensor, hook: Any) -> torch.Tensor:
        positions = torch.arange(activation.shape[1], device=activation.device)
        state.position_ids = positions[None].expand(len(activation), -1)
        after = replaced(activation, hook)
        assert after is not None
        return activation + share * (after - activation)

    return Variant("step", hooks=((site, step),))


@pytest.mark.slow
@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "mixtral"])
@pytest.mark.parametrize("kind", ["zero", "mean"])
def test_estimate_is_the_derivative(family: str, kind: Any) -> None:
    model = double(family)
    variants = each_head(model, kind)[::5]
    reference = reference_for(model, variants)
    clean, estimated = estimate_logprobs(model, REQUESTS, variants, reference=reference, max_tokens=16)
    expected = logprobs(model, CLEAN)
    assert_tensors_agree(clean, expected, precision(model))
    noise = min(rounding(torch.float32, size_of(expected), roundings=1) / STEP, 3e-3)
    for variant, own in zip(variants, estimated, strict=True):
        there = logprobs(model, part_of_the_way(model, variant, reference, STEP))
        back = logprobs(model, part_of_the_way(model, variant, reference, -STEP))
        assert_close(own, (there - back) / (2 * STEP), rtol=CURVATURE, atol=noise)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "gpt2"])
def test_a_groups_estimate_is_the_sum_of_its_heads(family: str) -> None:
    model = tiny(family)
    groups, heads = each_kv_group(model, "zero"), each_head(model, "zero")
    _, of_groups = estimate_logprobs(model, REQUESTS, groups)
    _, of_heads = estimate_logprobs(model, REQUESTS, heads)
    size = len(heads) // len(groups)
    assert_close(of_groups, of_heads.unflatten(0, (len(groups), size)).sum(1))
    assert float(of_heads.abs().min()) > 0


def test_batches_and_padding_do_not_matter() -> None:
    model = tiny("llama")
    variants = each_head(model, "mean")
    reference = reference_for(model, variants)
    done: list[int] = []
    together = estimate_logprobs(model, REQUESTS, variants, reference=reference, progress=done.append)
    apart = estimate_logprobs(model, REQUESTS, variants, reference=reference, max_tokens=1)
    assert done == [3]
    for one, other in zip(together, apart, strict=True):
        assert_tensors_agree(one, other, torch.float32)


@pytest.mark.parametrize(
    "variant", [each_layer(tiny("llama"), "skip")[1], Variant("mine", hooks=(("blocks.0.attn.hook_z", print),))]
)
def test_only_heads_and_groups_can_be_estimated(variant: Variant) -> None:
    with pytest.raises(UserError, match=f"{variant.name} is not the removal of one head"):
        estimate_logprobs(tiny("llama"), REQUESTS, [variant])
