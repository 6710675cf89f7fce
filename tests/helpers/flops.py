"""FLOPs as PyTorch counts them."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["counter"]


def flash_for_cpu(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    batch, heads, queries, size = query
    return int(batch * heads * queries * key[2] * (size + value[3]) * 2)


def grouped(tokens: Any, weights: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return int(2 * tokens[0] * weights[1] * weights[2])


def counter() -> FlopCounterMode:
    """PyTorch's counter, which leaves out the CPU's flash attention and products by expert unless it is told."""
    return FlopCounterMode(
        display=False,
        custom_mapping={
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: flash_for_cpu,
            torch.ops.aten._grouped_mm: grouped,
        },
    )
