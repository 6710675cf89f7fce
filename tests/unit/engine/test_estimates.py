"""Estimates of removing a head are the derivative along the way from its activation to the ablated one."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from lensprune.ablation.collect import collect_reference
from lensprune.ablation.enumeration import each_attention, each_head, each_kv_group, each_layer, each_mlp, layer_range
from lensprune.ablation.hooks import BatchState, VariantHooks
from lensprune.ablation.reference import ReferenceActivations
from lensprune.ablation.variants import CLEAN, Variant
from lensprune.engine import HookedExecutor
from lensprune.engine.estimates import estimate_logprobs, estimate_measure
from lensprune.engine.gradient_rules import GRADIENT_RULES
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
    (site, replaced), *reads = VariantHooks(model, variant, state, reference).named

    def step(activation: torch.Tensor, hook: Any) -> torch.Tensor:
        positions = torch.arange(activation.shape[1], device=activation.device)
        state.position_ids = positions[None].expand(len(activation), -1)
        after = replaced(activation, hook)
        assert after is not None
        return activation + share * (after - activation)

    return Variant("step", hooks=((site, step), *reads))


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


@pytest.mark.slow
def test_layers_and_branches_have_derivatives_too() -> None:
    for family in ("llama", "gemma3", "gpt2"):
        model = double(family)
        variants = [*each_layer(model, "skip"), *each_attention(model, "zero"), *each_mlp(model, "mean")]
        reference = reference_for(model, variants)
        _, estimated = estimate_logprobs(model, REQUESTS, variants, reference=reference, max_tokens=16)
        for variant, own in zip(variants, estimated, strict=True):
            there, back = (
                logprobs(model, part_of_the_way(model, variant, reference, share)) for share in (STEP, -STEP)
            )
            torch.testing.assert_close(own, (there - back) / (2 * STEP), rtol=CURVATURE, atol=3e-3)
            assert float(own.abs().max()) > 3e-2


@pytest.mark.parametrize(
    "variant",
    [
        layer_range(tiny("llama"), 0, 1),
        Variant("mine", hooks=(("blocks.0.attn.hook_z", print),)),
        CLEAN,
    ],
)
def test_only_the_removal_of_one_part_can_be_estimated(variant: Variant) -> None:
    with pytest.raises(UserError, match=f"{variant.name} does not remove exactly one part"):
        estimate_logprobs(tiny("llama"), REQUESTS, [variant])


SHARED = tuple(range(30, 50))
GROUPS = [
    [LoglikelihoodRequest((*SHARED, 60 + i, 7), option) for option in ((2, 9), (8,), (8, 5, 4), (11,))]
    for i in range(5)
] + [[LoglikelihoodRequest((*SHARED, 70), (5, 6))], [LoglikelihoodRequest((4, 6, 9), (5,))]]


def lead(i: int, logprobs: np.ndarray) -> tuple[float, np.ndarray]:
    """The first option's lead over the best other one, or its log-probability alone."""
    weights = np.zeros(len(logprobs))
    weights[0] = 1
    if len(logprobs) > 1:
        weights[1 + int(logprobs[1:].argmax())] = -1
    return float(weights @ logprobs), weights


def by_rows(model: HookedModel, variants: list[Variant], rule: str) -> tuple[np.ndarray, np.ndarray]:
    """The same from each request in a row of its own."""
    values, changes = [], []
    for i, group in enumerate(GROUPS):
        clean, change = estimate_logprobs(model, group, variants, rule=rule, max_tokens=1)
        value, weights = lead(i, clean.numpy())
        values.append(value)
        changes.append(change.numpy() @ weights)
    return np.array(values), np.array(changes)


@pytest.mark.parametrize("rule", GRADIENT_RULES)
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "gpt_neox", "phi3", "gemma3"])
def test_shared_tokens_give_the_same_as_rows_of_their_own(
    family: str, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lensprune.engine.estimates.ROW_TOKENS", 60)
    model = tiny(family)
    variants = [*each_head(model, "zero"), *each_mlp(model, "zero"), *each_layer(model, "skip")]
    values, changes = by_rows(model, variants, rule)
    done: list[int] = []
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found, total = estimate_measure(model, GROUPS, lead, variants, rule=rule, progress=done.append)
    # Gemma's window of 8 is shorter than these texts.
    assert ["sliding window of 8" in str(w.message) for w in told] == [True] * (family == "gemma3")
    assert sum(done) == 22
    size = size_of(changes, values)
    assert_tensors_agree(found, values, torch.float32, size=size, terms=32)
    assert_tensors_agree(total, changes.sum(0), torch.float32, size=size, terms=32 * len(GROUPS))


def test_shared_tokens_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")
    sizes: list[int] = []
    forward = type(model).forward

    def counted(self: Any, input_ids: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        sizes.append(input_ids.numel())
        return forward(self, input_ids, *args, **options)

    monkeypatch.setattr(type(model), "forward", counted)
    estimate_measure(model, GROUPS, lead, each_head(model, "zero"))
    # A probe of both ways, then one row: 20 shared tokens, 2 of each of five items and 3 of its options (of 2, 1, 3
    # and 1 tokens, the last of which predicts nothing), 2 of one item and 3 of another.
    assert sizes[2:] == [20 + 5 * (2 + 3) + 2 + 3]
    assert sum(len(r.input_ids) for group in GROUPS for r in group) > 9 * sizes[2]


def test_what_is_not_finite_is_left_out() -> None:
    model = tiny("llama")
    variants = each_head(model, "zero")
    _, changes = by_rows(model, variants, "plain")

    def some(i: int, logprobs: np.ndarray) -> tuple[float, np.ndarray]:
        value, weights = lead(i, logprobs)
        return (math.nan, weights) if i == 1 else (value, weights + math.inf) if i == 3 else (value, weights)

    values, total = estimate_measure(model, GROUPS, some, variants)
    assert np.isnan(values).tolist() == [i in (1, 3) for i in range(len(GROUPS))]
    kept = changes[[i for i in range(len(GROUPS)) if i not in (1, 3)]].sum(0)
    assert_tensors_agree(total, kept, torch.float32, size=size_of(changes), terms=32 * len(GROUPS))
    values, total = estimate_measure(model, GROUPS, lambda i, logprobs: (math.nan, logprobs), variants)
    assert np.isnan(values).all()
    assert not total.any()


def test_what_another_part_does_when_one_is_gone() -> None:
    model = double("llama")
    gone, other = each_head(model, "zero")[1], each_head(model, "zero")[6]
    group = [[request] for request in REQUESTS]

    def first(i: int, logprobs: np.ndarray) -> tuple[float, np.ndarray]:
        return float(logprobs[0]), np.ones(1)

    values, total = estimate_measure(model, group, first, [other], given=gone)
    assert_tensors_agree(values, logprobs(model, gone), precision(model))
    there, back = (
        logprobs(model, replace(gone, hooks=part_of_the_way(model, other, None, share).hooks)).sum()
        for share in (STEP, -STEP)
    )
    assert float(total[0]) == pytest.approx(float(there - back) / (2 * STEP), rel=CURVATURE)
    clean = estimate_measure(model, group, first, [other])[1]
    assert abs(float(clean[0] - total[0])) > 2 * CURVATURE * abs(float(total[0]))
