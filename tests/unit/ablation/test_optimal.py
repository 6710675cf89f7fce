"""Optimal ablation: what must hold of the best constant, and the same numbers from both executors."""

from __future__ import annotations

import pytest
import torch

from lensprune.ablation import (
    MLP,
    Ablation,
    Attention,
    Head,
    KVGroup,
    Layer,
    Variant,
    collect_reference,
    each_head,
    optimal,
)
from lensprune.ablation.optimal import ablation_loss, optimal_constants
from lensprune.ablation.reference import site_of
from lensprune.engine.forked import ForkedExecutor
from lensprune.engine.hooked import HookedExecutor
from lensprune.errors import UserError
from lensprune.sweeps.run import sweep
from tests.helpers.planted.circuits import ids, model_of
from tests.helpers.tiny_models import generation_requests, likelihood_requests, tiny
from tests.helpers.tolerances import assert_close, assert_responses_agree, assert_zero, equal

PROMPTS = [(5, 9, 30, 41, 77, 12), (8, 60, 61, 62), (4, 7, 200, 100, 99, 3)]


def variant(component: object, kind: str) -> Variant:
    ablation = Ablation(component, kind)  # type: ignore[arg-type]
    return Variant(ablation.name, (ablation,))


@pytest.mark.slow
@pytest.mark.parametrize("component", [Head(0, 1), KVGroup(1, 0), Attention(1), Layer(2)])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_no_constant_nearby_is_better(family: str, component: object) -> None:
    model = tiny(family)
    variants = {kind: variant(component, kind) for kind in ("optimal", "mean", "zero")}
    reference = collect_reference(model, PROMPTS, list(variants.values()))
    losses = {kind: ablation_loss(model, PROMPTS, own, reference) for kind, own in variants.items()}
    assert 0 <= losses["optimal"] < 0.999 * losses["mean"]
    assert losses["optimal"] < losses["zero"]
    constant = reference.optimal[component.label]  # type: ignore[attr-defined]
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        direction = torch.randn(constant.shape, generator=generator).to(constant.device)
        moved = collect_reference(model, PROMPTS, [variants["mean"]])
        object.__setattr__(moved, "optimal", {component.label: constant + 0.3 * direction})  # type: ignore[attr-defined]
        assert ablation_loss(model, PROMPTS, variants["optimal"], moved) > losses["optimal"]


@pytest.mark.parametrize("start", ["zero", "mean", "median"])
def test_the_search_is_no_worse_than_any_of_its_starts(start: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The starts are set so that one of them is best by far: the search begins there, and ends no worse."""
    model, component = tiny("llama"), MLP(1)
    own = variant(component, "optimal")
    reference = collect_reference(model, PROMPTS, [variant(component, "mean")])
    site = site_of(component)
    good = torch.stack([reference.first[site], reference.pooled[site]])
    far = good + 30 * torch.randn(good.shape, generator=torch.Generator().manual_seed(1)).to(good.device)
    if start == "zero":
        good = torch.zeros_like(good)
    means = {site: good if start == "mean" else far}
    monkeypatch.setattr(optimal, "_medians", lambda *args: {site: good if start == "median" else far})

    def loss(constant: torch.Tensor) -> float:
        object.__setattr__(reference, "optimal", {component.label: constant})
        return ablation_loss(model, PROMPTS, own, reference)

    [found] = optimal_constants(model, PROMPTS, own.ablations, means, iterations=2).values()
    assert loss(found) < loss(good) < loss(far)


def test_medians_are_of_first_tokens_and_of_the_others() -> None:
    model, site = tiny("llama"), "blocks.1.hook_mlp_out"
    rows = []
    for prompt in PROMPTS:
        ids_ = torch.tensor([prompt])
        with torch.inference_mode(), model.hooks([(site, lambda value, hook: rows.append(value[0].clone()))]):
            model.forward(ids_, torch.ones_like(ids_), torch.arange(len(prompt))[None])
    first, others = torch.stack([row[0] for row in rows]), torch.cat([row[1:] for row in rows])
    found = optimal._medians(model, PROMPTS, {site})[site]
    assert_close(found, torch.stack([first.median(0).values, others.median(0).values]))
    assert (found[1] - others.mean(0)).abs().max() > 1e-4


def test_a_head_that_always_writes_the_same_is_replaced_without_loss() -> None:
    """Idle planted heads rest on BOS, so their output is a constant, and the optimal constant is it."""
    model = model_of("induction", "llama")
    prompts = [ids(model, text) for text in ("a b c d a", "p o n m o")]
    optimal = [variant(Head(1, 3), "optimal"), variant(Head(1, 2), "optimal")]
    reference = collect_reference(model, prompts, optimal)
    idle, induction = (ablation_loss(model, prompts, own, reference) for own in optimal)
    assert_zero(idle, torch.float32, size=10, at_most=1e-6)
    assert induction > 0.1
    assert induction < ablation_loss(model, prompts, variant(Head(1, 2), "zero"), None)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_executors_agree(family: str) -> None:
    model = tiny(family)
    variants = [variant(c, "optimal") for c in (Head(0, 1), KVGroup(2, 0), Attention(1), Layer(1))]
    variants.append(Variant("two", (Ablation(Head(0, 1), "optimal"), Ablation(Attention(1), "mean"))))
    reference = collect_reference(model, PROMPTS, variants)
    requests = [*likelihood_requests(model), *generation_requests(model, 3)]
    slow = {a.variant.name: a for a in HookedExecutor(model).run(requests, variants, reference=reference)}
    found = list(ForkedExecutor(model).run(requests, variants, reference=reference))
    assert_responses_agree(model, requests, found, [slow[answered.variant.name] for answered in found], reference)


def test_the_search_is_repeatable_and_needs_a_reference() -> None:
    model = tiny("llama")
    ablations = [Ablation(Head(0, 2), "optimal")]
    found = collect_reference(model, PROMPTS, each_head(model, "mean", [0], [2]))
    means = {site: torch.stack([found.first[site], pooled]) for site, pooled in found.pooled.items()}
    first, again = (optimal_constants(model, PROMPTS, ablations, means, iterations=4) for _ in range(2))
    assert equal(first["L0.H2"], again["L0.H2"])
    with pytest.raises(UserError, match="needs reference activations"):
        list(HookedExecutor(model).run(likelihood_requests(model), [variant(Head(0, 2), "optimal")]))


def test_a_sweep_by_optimal_ablation() -> None:
    """The planted sums are answered by two heads; without one of them the best constant still loses the answer."""
    model = model_of("arithmetic", "llama")
    variants = each_head(model, "optimal", [0])
    run = sweep(model, ["arithmetic"], ["continuation"], variants, limit=6, shots=1, progress=False)
    changes = run.effects(measure="gold_logprob")[0]
    assert changes.heads == (0, 1, 2, 3)
    assert abs(changes.effects[:3]).max() < 1e-4
    assert abs(changes.effects[3]) > 0.1
