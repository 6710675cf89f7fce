"""Norms in torch's kernel: the bits of the model's own, and none replaced that computes something else."""

from __future__ import annotations

import pytest
import torch

from lensprune.engine.norms import fuse_norms
from lensprune.models.bridge import unhooked_copy
from tests.helpers.tiny_models import tiny


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("family", "per_layer"), [("llama", 2), ("qwen3", 4), ("gemma3", 6), ("gpt2", 0)])
def test_the_bits_of_the_models_own(family: str, per_layer: int, dtype: str) -> None:
    model = tiny(family, dtype)
    own = model.raw_model  # type: ignore[attr-defined]
    fused = unhooked_copy(own)
    assert fuse_norms(fused) == per_layer * model.facts.n_layers + bool(per_layer)
    ids = torch.arange(3, 40)[None]
    with torch.inference_mode():
        expected, found = (module(input_ids=ids, use_cache=False).logits for module in (own, fused))
    assert expected.abs().max() > 0.01
    assert torch.equal(found, expected)
    assert not any("forward" in vars(module) for module in own.modules())


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
    assert fuse_norms(torch.nn.ModuleList([_Norm(), _Rounded(torch.float64)])) == 0
    assert fuse_norms(torch.nn.ModuleList([_Norm(), _Rounded()])) == 1
