"""The precision in which sums are computed."""

from __future__ import annotations

import torch

__all__ = ["accumulation_dtype", "doubled", "has_float64", "widened"]


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for everything narrower."""
    return torch.promote_types(dtype, torch.float32)


def widened(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` in its `accumulation_dtype`, used for softmaxes, log-probabilities and merges."""
    return tensor.to(accumulation_dtype(tensor.dtype))


def has_float64(device: torch.device) -> bool:
    """Whether tensors on the device may be float64; MPS has none."""
    return device.type != "mps"


def doubled(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` in float64: where it is, or on the CPU if its device has no float64."""
    return (tensor if has_float64(tensor.device) else tensor.cpu()).double()
