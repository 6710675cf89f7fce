"""Which GPU a run lay on is no part of it, and a model over two GPUs gives the numbers of one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import lensprune as lp
from lensprune import precision
from lensprune.ablation import CLEAN, each_layer
from lensprune.attribution import (
    PromptPair,
    activation_patching,
    attribution_patching,
    direct_logit_attribution,
)
from lensprune.divergence.similarity import layer_similarity
from lensprune.engine import ForkedExecutor, HookedExecutor, sampling
from lensprune.models import as_hooked_model, load_model
from lensprune.protocols.requests import GenerateRequest, Sampling
from lensprune.replacement.pair import model_pair, weight_change
from lensprune.replacement.parts import Part
from lensprune.runs.store import RunStore
from tests.helpers.pretend_gpu import PlacementError, settings
from tests.helpers.sweeps import sweep
from tests.helpers.tiny_models import folder, generation_requests, likelihood_requests, tiny
from tests.helpers.tolerances import assert_records_agree, assert_responses_agree


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "n_devices", 2)


def test_a_run_on_the_second_gpu_resumes_on_any(
    two_gpus: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"tasks": ("facts",), "protocols": ("continuation",), "limit": 2}
    whole = sweep(folder("llama"), tmp_path / "whole", device="cuda:0", **options)
    write, written = RunStore.write, 0

    def stop_after_one(self: RunStore, *args: Any) -> None:
        nonlocal written
        if written:
            raise KeyboardInterrupt
        write(self, *args)
        written += 1

    monkeypatch.setattr(RunStore, "write", stop_after_one)
    with pytest.raises(KeyboardInterrupt):
        sweep(folder("llama"), tmp_path / "run", device="cuda:1", **options)
    monkeypatch.setattr(RunStore, "write", write)
    monkeypatch.setattr(settings, "n_devices", 1)
    again = lp.resume(tmp_path / "run", progress=False)
    assert again.spec.device == "cuda"
    assert_records_agree(again.records(), whole.records(), 1e-7)


def test_layers_over_two_gpus(two_gpus: None) -> None:
    split = as_hooked_model(load_model(folder("llama"), n_devices=2))
    places = {str(own.device) for own in split.module.parameters()}
    assert places == {"cuda:0", "cuda:1"}
    one = as_hooked_model(load_model(folder("llama"), device="cuda:0"))
    requests = [*likelihood_requests(one)[:6], *generation_requests(one, 3)[:2]]
    variants = [CLEAN, *each_layer(one)]
    found, expected = (list(HookedExecutor(own).run(requests, variants)) for own in (split, one))
    assert_responses_agree(one, requests, found, expected)


@pytest.mark.parametrize("at", ["executors", "patching", "gradients", "direct", "similarity", "weights"])
def test_a_device_without_float64(at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as MPS: what needs float64 is computed on the CPU."""
    model = tiny("llama")
    prompts = [r for r in generation_requests(model) if isinstance(r, GenerateRequest)]
    sampled = [replace(r, sampling=Sampling(0.8, top_k=20), item=str(i)) for i, r in enumerate(prompts)]
    requests = [*likelihood_requests(model), *prompts, *sampled]
    variants = [CLEAN, *each_layer(model, layers=[1])]

    def results() -> list[object]:
        if at == "executors":
            answered = [*ForkedExecutor(model).run(requests, variants), *HookedExecutor(model).run(requests, variants)]
            return [response for own in answered for response in own.responses]
        if at == "weights":
            models = model_pair(model, as_hooked_model(load_model(folder("llama", 1))))
            changes = [weight_change(models, [Part("mlp", layer)]) for layer in range(model.facts.n_layers)]
            return [number for change in changes for number in (change.absolute, change.relative)]
        pair = PromptPair(prompts[0].context_ids, prompts[0].context_ids[::-1], 5, 6)
        if at == "direct":
            return list(direct_logit_attribution(model, [pair]).values.flatten().tolist())
        found = {
            "patching": lambda: activation_patching(model, [pair], ("head", "mlp")),
            "gradients": lambda: attribution_patching(model, [pair], ("head", "mlp")),
            "similarity": lambda: layer_similarity(model, [prompt.context_ids for prompt in prompts]),
        }[at]()
        return list(found.select_dtypes("number").fillna(0).to_numpy().flatten().tolist())

    expected = results()
    assert len(set(map(str, expected))) > 4
    monkeypatch.setattr(settings, "float64", False)
    with pytest.raises(PlacementError, match="no float64"):
        torch.ones(2, device="cuda").double()
    monkeypatch.setattr(precision, "has_float64", lambda device: device.type == "cpu")
    monkeypatch.setattr(sampling, "has_float64", lambda device: device.type == "cpu")
    assert results() == expected
