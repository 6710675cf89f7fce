"""How fast this machine multiplies matrices and reads weights: a second of measuring, or numbers that are given."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from lensprune.costs.cost import Cost
from lensprune.costs.shape import ModelShape
from lensprune.errors import UserError

__all__ = ["Speed", "estimated_seconds", "measure_speed"]

_SECONDS = 0.3
_PIECES = 5
_ROWS, _GPU_ROWS = 512, 8192
_MATRIX_BYTES = 64 * 2**20
"""Larger than a processor's caches, so that reading it is reading memory."""


@dataclass(frozen=True)
class Speed:
    """`flops` per second of large matrix products, and `bandwidth` in bytes per second of reading weights.

    Without a bandwidth decoding is counted by its FLOPs alone.
    """

    flops: float
    bandwidth: float | None
    measured: bool


def measure_speed(shape: ModelShape, dtype: torch.dtype, device: str, *, seconds: float = _SECONDS) -> Speed:
    """Time products of the model's own width on `device`, for `seconds` each of many rows and of one.

    Raises:
        UserError: the device is not here, or can't multiply this type.
    """
    try:
        place = torch.device(device)
        width = min(4 * shape.d_model, max(1, _MATRIX_BYTES // (shape.d_model * dtype.itemsize)))
        weights = torch.randn(width, shape.d_model, device=place).to(dtype)
        rows = _ROWS if place.type == "cpu" else _GPU_ROWS
        tokens = torch.randn(rows, shape.d_model, device=place).to(dtype)
        product = _rate(lambda: torch.nn.functional.linear(tokens, weights), place, seconds)
        size = max(1, _MATRIX_BYTES // (shape.d_model * dtype.itemsize))
        large = torch.randn(size, shape.d_model, device=place).to(dtype)
        reading = _rate(lambda: torch.nn.functional.linear(tokens[:1], large), place, seconds)
    # torch is an AssertionError away from a GPU that it was built without; what a device can't do is a RuntimeError.
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"the speed of device {device!r} with {dtype} can't be measured here ({reason}): give flops, such as 400e12"
        ) from error
    return Speed(product * 2 * rows * width * shape.d_model, reading * large.numel() * dtype.itemsize, True)


def _rate(product: Callable[[], torch.Tensor], device: torch.device, seconds: float) -> float:
    """Calls per second of `product`, in the best of several pieces: a machine that pauses for a moment is no slower."""
    for _ in range(2):
        product()
    _wait(device)
    best = 0.0
    for _ in range(_PIECES):
        count, start = 0, time.perf_counter()
        while (passed := time.perf_counter() - start) < seconds / _PIECES:
            product()
            _wait(device)
            count += 1
        best = max(best, count / passed)
    return best


def _wait(device: torch.device) -> None:
    match device.type:
        case "cuda":
            torch.cuda.synchronize(device)
        case "xpu":
            torch.xpu.synchronize(device)
        case "mps":
            torch.mps.synchronize()


def estimated_seconds(cost: Cost, speed: Speed, weight_bytes: int, number_bytes: int) -> float:
    """Time of the matrix products of `cost`, whose numbers have so many bytes each.

    A decode step takes the longer of its FLOPs and of reading the weights once and its keys and values. Everything
    that is no matrix product (norms, rotations, tokenising, the interpreter) is not included.
    """
    prefill = (cost.flops - cost.decode_flops) / speed.flops
    reading = 0.0 if speed.bandwidth is None else _read_bytes(cost, weight_bytes, number_bytes) / speed.bandwidth
    return prefill + max(cost.decode_flops / speed.flops, reading)


def _read_bytes(cost: Cost, weight_bytes: int, number_bytes: int) -> float:
    return cost.passes * weight_bytes + cost.cached * number_bytes
