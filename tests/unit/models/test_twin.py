"""A bridge that the user booted: the fast path gives the same numbers on it, or says why it can't."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

import lensprune as lp
from lensprune.engine import make_executor
from lensprune.models import BridgeModel, as_hooked_model
from lensprune.models.twin import NoTwin, twin_of
from lensprune.protocols.requests import GenerateResponse, LoglikelihoodResponse
from tests.helpers.tiny_models import folder, generation_requests, likelihood_requests


def booted(family: str = "llama") -> Any:
    return TransformerBridge.boot_transformers(str(folder(family)), device="cpu", dtype=torch.float32)


def numbers(model: Any, executor: str) -> list[Any]:
    hooked = as_hooked_model(model)
    runner = make_executor(executor, hooked)
    assert runner.name == executor
    variants = [lp.CLEAN, *lp.each_layer(hooked, "skip"), *lp.each_head(hooked, "zero", layers=[1])]
    asked = [*likelihood_requests(hooked), *generation_requests(hooked)]
    found: list[Any] = []
    for answered in runner.run(asked, variants):
        for response in answered.responses:
            if isinstance(response, LoglikelihoodResponse):
                found.append(response.logprob)
            else:
                assert isinstance(response, GenerateResponse)
                found.append(response.token_ids)
    return found


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "qwen3", "mixtral"])
def test_a_booted_bridge_takes_the_fast_path_with_the_same_numbers(family: str) -> None:
    bridge = booted(family)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fast = numbers(bridge, "forked")
    slow, loaded = numbers(bridge, "hooked"), numbers(lp.load_model(folder(family), device="cpu"), "forked")
    for mine, reference, ours in zip(fast, slow, loaded, strict=True):
        if isinstance(mine, float):
            assert mine == pytest.approx(reference, abs=1e-4)
            assert mine == pytest.approx(ours, abs=1e-4)
        else:
            assert mine == reference == ours
    assert len({round(value, 3) for value in fast if isinstance(value, float)}) > 20


def test_the_twin_shares_every_tensor_and_leaves_the_bridge_alone() -> None:
    bridge = booted()
    before = {name: parameter.data_ptr() for name, parameter in bridge.named_parameters()}
    twin = twin_of(bridge)
    held = {tensor.data_ptr() for tensor in [*bridge.parameters(), *bridge.original_model.buffers()]}
    for tensor in [*twin.parameters(), *twin.buffers()]:
        assert tensor.device.type == "cpu"
        assert tensor.data_ptr() in held
    assert {name: parameter.data_ptr() for name, parameter in bridge.named_parameters()} == before
    assert not twin.training
    ids = torch.arange(4, 12)[None]
    with torch.no_grad():
        expected = bridge.original_model(input_ids=ids).logits
        assert torch.allclose(twin(input_ids=ids).logits, expected, atol=1e-5)


def test_weights_that_are_edited_in_place_are_those_of_both() -> None:
    bridge = booted()
    before = numbers(bridge, "forked")
    with torch.no_grad():
        bridge.original_model.get_input_embeddings().weight.mul_(1.5)
    after = numbers(bridge, "forked")
    assert after != before
    for mine, reference in zip(after, numbers(bridge, "hooked"), strict=True):
        if isinstance(mine, float):
            assert mine == pytest.approx(reference, abs=1e-4)


def test_what_the_configuration_does_not_say_is_refused_by_name() -> None:
    def added(bridge: Any) -> None:
        bridge.original_model.model.extra = torch.nn.Linear(2, 2)

    def other_shape(bridge: Any) -> None:
        norm = bridge.blocks[1].ln1.original_component
        norm.weight = torch.nn.Parameter(torch.ones(5))

    def replaced(bridge: Any) -> None:
        part = bridge.blocks[1].mlp.original_component
        own = part.forward
        part.forward = lambda *args, **kwargs: own(*args, **kwargs) * 2

    for change, message in (
        (added, r"model\.extra was added to Linear"),
        (other_shape, r"layers\.1\.input_layernorm\.weight .* another shape"),
        (replaced, r"forward method of model\.layers\.1\.mlp was replaced"),
    ):
        bridge = booted()
        change(bridge)
        with pytest.raises(NoTwin, match=message):
            twin_of(bridge)


def test_without_a_twin_the_reference_runs_and_the_warning_says_why() -> None:
    bridge = booted()
    bridge.original_model.model.extra = torch.nn.Linear(2, 2)
    model = as_hooked_model(bridge)
    assert isinstance(model, BridgeModel)
    assert model.raw_model is None
    with pytest.warns(UserWarning, match=r"using the hooked executor instead: .* model\.extra was added"):
        assert make_executor("forked", model).name == "hooked"


def test_a_hook_of_the_users_own_is_refused_or_kept_by_name() -> None:
    bridge = booted()

    def halve(activation: torch.Tensor, hook: Any) -> torch.Tensor:
        return activation * 0.5

    bridge.add_hook("blocks.1.hook_mlp_out", halve)
    with pytest.raises(lp.UserError, match=r"custom hook at blocks\.1"):
        as_hooked_model(bridge)
    kept = as_hooked_model(bridge, keep_hooks=True)
    with pytest.warns(UserWarning, match=r"the model has a custom hook at blocks\.1"):
        assert make_executor("forked", kept).name == "hooked"
