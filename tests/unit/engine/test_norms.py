"""Norms in torch's kernel: the bits of the model's own, and none replaced that computes something else."""

from __future__ import annotations

import pytest
import torch

from lensprune.ablation import CLEAN
from lensprune.engine import ForkedExecutor, HookedExecutor
from lensprune.engine.norms import FusedNorms
from lensprune.models import as_hooked_model, load_model
from lensprune.models.bridge import unhooked_copy
from tests.helpers.tiny_models import folder, likelihood_requests, tiny
from tests.helpers.tolerances import assert_responses_agree


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("family", "per_layer"), [("llama", 2), ("qwen3", 4), ("gemma3", 6), ("gpt2", 0)])
def test_the_bits_of_the_models_own(family: str, per_layer: int, dtype: str) -> None:
    model = tiny(family, dtype)
    own = model.raw_model  # type: ignore[attr-defined]
    fused = unhooked_copy(own)
    norms = FusedNorms(fused)
    assert len(norms.norms) == per_layer * model.facts.n_layers + bool(per_layer)
    ids = torch.arange(3, 40)[None]
    with torch.inference_mode():
        expected, found = (module(input_ids=ids, use_cache=False).logits for module in (own, fused))
    assert expected.abs().max() > 0.01
    assert torch.equal(found, expected)
    assert not any("forward" in vars(module) for module in own.modules())


def test_weights_that_change_between_runs() -> None:
    model = as_hooked_model(load_model(folder("gemma3")))
    executor, requests = ForkedExecutor(model), likelihood_requests(model)
    before = list(executor.run(requests, [CLEAN]))
    with torch.no_grad():
        for name, weight in model.module.named_parameters():
            if "norm" in name or ".ln" in name:
                weight.data.add_(0.5)
    found, expected = list(executor.run(requests, [CLEAN])), list(HookedExecutor(model).run(requests, [CLEAN]))
    assert_responses_agree(model, requests, found, expected)
    with pytest.raises(AssertionError):
        assert_responses_agree(model, requests, before, expected)


class _Norm(torch.nn.Module):
    """A norm by the mean of absolute values."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(8, dtype=dtype))
        self.eps = 1e-6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x / (x.abs().mean(-1, keepdim=True) + self.eps)


class _Rounded(_Norm):
    """An RMS norm that rounds to float32, as Hugging Face's do in float64."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype)


def test_another_formula_is_left_alone() -> None:
    assert not FusedNorms(torch.nn.ModuleList([_Norm(), _Rounded(torch.float64)])).norms
    assert len(FusedNorms(torch.nn.ModuleList([_Norm(), _Rounded()])).norms) == 1
