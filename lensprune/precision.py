"""The precision in which sums are computed."""

from __future__ import annotations

import torch

__all__ = ["accumulation_dtype", "widened"]


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for everything narrower."""
    return torch.promote_types(dtype, torch.float32)


def widened(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` in its `accumulation_dtype`, used for softmaxes, log-probabilities and merges."""
    return tensor.to(accumulation_dtype(tensor.dtype))
