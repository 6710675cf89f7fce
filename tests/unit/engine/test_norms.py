"""Norms in torch's kernel: the bits of the model's own, and none replaced that computes something else."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch

from lensprune.ablation import CLEAN
from lensprune.engine import ForkedExecutor, HookedExecutor, norms
from lensprune.engine.norms import FusedNorms
from lensprune.models import as_hooked_model, load_model
from lensprune.models.bridge import unhooked_copy
from tests import DEVICE
from tests.helpers.tiny_models import folder, likelihood_requests, logits_of, tiny
from tests.helpers.tolerances import assert_responses_agree, assert_tensors_agree

CPU = torch.device("cpu")
# Squares are added up in another order, and a product may then be rounded to a neighbour.
ROUNDINGS_OF = {torch.float32: 4.0, torch.float16: 2.0}
if DEVICE != "cpu":
    # The interpreter cuts bfloat16 off instead of rounding it.
    ROUNDINGS_OF[torch.bfloat16] = 2.0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("family", "per_layer"), [("llama", 2), ("qwen3", 4), ("gemma3", 6), ("gpt2", 0)])
def test_the_bits_of_the_models_own(family: str, per_layer: int, dtype: str) -> None:
    model = tiny(family, dtype)
    own = model.raw_model  # type: ignore[attr-defined]
    fused = unhooked_copy(own)
    replaced = FusedNorms(fused, CPU).norms
    assert len(replaced) == per_layer * model.facts.n_layers + bool(per_layer)
    expected, found = logits_of(own, fused)
    assert expected.abs().max() > 0.01
    assert torch.equal(found, expected)
    assert not any("forward" in vars(module) for module in own.modules())


@pytest.fixture(scope="module")
def kernel() -> ModuleType:
    pytest.importorskip("triton")
    from lensprune.engine import norm_kernel

    return norm_kernel


class Counted:
    """A kernel that counts its calls."""

    def __init__(self, kernel: ModuleType) -> None:
        self.calls, self._kernel = 0, kernel

    def __call__(self, *args: Any, **options: Any) -> torch.Tensor:
        self.calls += 1
        return self._kernel.rms_norm(*args, **options)


@pytest.mark.parametrize("dtype", ROUNDINGS_OF)
@pytest.mark.parametrize("shape", [(1, 5, 8), (1, 3, 576), (1, 4, 3, 80)])
@pytest.mark.parametrize("kind", [norms._Norm, norms._GemmaNorm])
def test_a_gpus_kernel(kernel: ModuleType, kind: type[norms._Norm], shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, weight = (torch.randn(*size, device=DEVICE).to(dtype) for size in (shape, shape[-1:]))
    counted = Counted(kernel)
    fused, plain = kind(weight, 1e-6, counted), kind(weight, 1e-6)
    with torch.inference_mode():
        # Also of heads within tokens, as projections have them.
        for calls, own in enumerate((3 * x, (3 * x).transpose(-3, -2)), start=1):
            expected, found = plain(own), fused(own)
            assert counted.calls == calls
            assert_tensors_agree(found, expected, dtype, roundings=ROUNDINGS_OF[dtype])
            assert (found.dtype, found.stride()) == (dtype, own.stride())


@pytest.mark.parametrize("kind", [norms._Norm, norms._GemmaNorm])
def test_what_it_can_not_read_goes_to_torch(kernel: ModuleType, kind: type[norms._Norm]) -> None:
    torch.manual_seed(0)
    counted = Counted(kernel)
    weight = torch.randn(8, device=DEVICE)
    fused, plain = kind(weight, 1e-6, counted), kind(weight, 1e-6)
    x = torch.randn(2, 3, 5, 8, device=DEVICE)
    for other in (x, x[0, 0], x[:1].half(), x[:1].double(), x[:1, :, :, :1].expand(1, 3, 5, 8)):
        assert torch.equal(fused(other), plain(other))
    fused(x[:1].requires_grad_()).sum().backward()
    assert counted.calls == 0


@pytest.mark.parametrize(("family", "per_layer"), [("llama", 2), ("qwen3", 4), ("gemma3", 6), ("gpt2", 0)])
def test_models_that_use_a_gpus_kernel(
    family: str, per_layer: int, kernel: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(kernel)
    monkeypatch.setattr(norms, "norm_kernel", lambda device: counted)
    model = tiny(family)
    own = model.raw_model  # type: ignore[attr-defined]
    fused = unhooked_copy(own)
    FusedNorms(fused, CPU)
    expected, found = logits_of(own, fused)
    assert counted.calls == per_layer * model.facts.n_layers + bool(per_layer)
    assert_tensors_agree(found, expected, torch.float32)


def test_what_is_made_of_weights_keeps_its_address() -> None:
    fused = FusedNorms(unhooked_copy(tiny("gemma3").raw_model), CPU)  # type: ignore[attr-defined]
    norm = fused.norms[0]
    address, before = norm.factor.data_ptr(), norm.factor.clone()
    with torch.no_grad():
        norm.weight.add_(0.5)
    try:
        fused.refresh()
    finally:
        with torch.no_grad():
            norm.weight.sub_(0.5)
    assert norm.factor.data_ptr() == address
    assert_tensors_agree(norm.factor, before + 0.5, torch.float32)


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
    assert not FusedNorms(torch.nn.ModuleList([_Norm(), _Rounded(torch.float64)]), CPU).norms
    assert len(FusedNorms(torch.nn.ModuleList([_Norm(), _Rounded()]), CPU).norms) == 1
