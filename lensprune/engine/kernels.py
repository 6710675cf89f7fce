"""Fused attention kernels that also return the log-sum-exp, for parts that are combined later.

Each returns ``None`` if there is no kernel for the device, dtype or shape; the caller then uses matrix products.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate

import torch
from jaxtyping import Bool, Float, Int

__all__ = ["Packed", "Partial", "flash_packed", "fused_attention", "is_recent_gpu"]

FUSED_QUERIES = 8
"""With fewer queries per key/value head, the fused CPU kernel is slower than two batched products (2 to 4 times slower
on two threads)."""

_HALF = (torch.float16, torch.bfloat16)
_MAX_FLASH_WIDTH = 256
_ALIGNED = 16

packed_kernel = torch.ops.aten._flash_attention_forward
_TAKES_WINDOWS = "window_size_left" in {own.name for own in packed_kernel.default._schema.arguments}
"""Whether this release of torch's kernel takes windows."""

Partial = tuple[torch.Tensor, torch.Tensor]
Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float, bool, torch.Tensor | None], Partial]


def fused_attention(
    q: Float[torch.Tensor, "batch head query d_head"],
    k: Float[torch.Tensor, "batch kv_head key d_head"],
    v: Float[torch.Tensor, "batch kv_head key d_head"],
    scaling: float,
    *,
    causal: bool,
    allowed: Bool[torch.Tensor, "#batch #query key"] | None,
) -> Partial | None:
    """Output [batch, head, query, d_head] and log-sum-exp [batch, head, query], as in `partial_attention`."""
    if causal and allowed is not None:
        return None
    if is_recent_gpu(q.device):
        if allowed is None and _flash_takes(q):
            out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, scale=scaling)
            return out, lse
        if q.dtype in (*_HALF, torch.float32) and q.shape[-1] % 8 == 0:
            return _grouped(_efficient, q, k, v, scaling, causal, allowed)
        return None
    if q.device.type == "cpu" and q.shape[1] // k.shape[1] * q.shape[2] >= FUSED_QUERIES:
        return _grouped(_flash_for_cpu, q, k, v, scaling, causal, allowed)
    return None


@cache
def is_recent_gpu(device: torch.device) -> bool:
    """Whether this is a GPU that the kernels are made for: NVIDIA's since Ampere."""
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


def _flash_takes(q: torch.Tensor) -> bool:
    return q.dtype in _HALF and q.shape[-1] % 8 == 0 and q.shape[-1] <= _MAX_FLASH_WIDTH


def _grouped(
    kernel: Kernel,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scaling: float,
    causal: bool,
    allowed: torch.Tensor | None,
) -> Partial:
    """Call a kernel that needs as many key/value heads as query heads."""
    batch, n_heads, n_queries, d_head = q.shape
    n_kv = k.shape[1]
    repeat = n_heads // n_kv
    mask = None if allowed is None else _additive(allowed, repeat, n_queries, q.dtype)
    if causal and repeat > 1:
        k, v = (t[:, :, None].expand(-1, -1, repeat, -1, -1).flatten(1, 2) for t in (k, v))
    elif repeat > 1:
        # Query heads that share a key/value head are treated as additional queries of it.
        q = q.reshape(batch, n_kv, repeat * n_queries, d_head)
    out, lse = kernel(q, k, v, scaling, causal, mask)
    out, lse = out.reshape(batch, n_heads, n_queries, d_head), lse.reshape(batch, n_heads, n_queries)
    if allowed is not None:
        # Where nothing is allowed, the CPU kernel returns output 0 but log-sum-exp 0; the other guarantees nothing.
        blind = ~allowed.any(-1)[:, None]
        lse = lse.masked_fill(blind, -torch.inf)
        if q.device.type != "cpu":
            out = out.masked_fill(blind[..., None], 0.0)
    return out, lse


def _flash_for_cpu(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scaling: float, causal: bool, mask: torch.Tensor | None
) -> Partial:
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, causal, attn_mask=mask, scale=scaling
    )
    return out, lse


def _efficient(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scaling: float, causal: bool, mask: torch.Tensor | None
) -> Partial:
    if mask is not None:
        mask = mask.expand(*q.shape[:3], -1)
    out, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
        q, k, v, mask, True, 0.0, causal, scale=scaling
    )
    # Its log-sum-exp is padded to a multiple of 32 queries.
    return out, lse[:, :, : q.shape[2]]


def _additive(allowed: torch.Tensor, repeat: int, n_queries: int, dtype: torch.dtype) -> torch.Tensor:
    """Mask that a kernel adds to scores [#batch, 1, #(repeat × query), key]; its rows begin at aligned addresses."""
    *shape, n_keys = allowed.shape
    room = torch.zeros(*shape, -(-n_keys // _ALIGNED) * _ALIGNED, dtype=dtype, device=allowed.device)
    mask = room[..., :n_keys].masked_fill_(~allowed, -torch.inf)
    if allowed.shape[1] > 1 and repeat > 1:
        mask = room[:, None].expand(-1, repeat, -1, -1).flatten(1, 2)[..., :n_keys]
    return mask[:, None]


@dataclass(frozen=True)
class Packed:
    """Blocks of queries and the keys of each, back to back: tokens `queries` see tokens `keys`.

    `ends_q` and `ends_k` are the blocks' bounds, starting at 0; `most_q` and `most_k` are the largest block sizes.
    """

    queries: Int[torch.Tensor, " query"]
    keys: Int[torch.Tensor, " key"]
    ends_q: Int[torch.Tensor, " bound"]
    ends_k: Int[torch.Tensor, " bound"]
    most_q: int
    most_k: int

    @classmethod
    def of(cls, blocks: Sequence[tuple[slice, slice | list[slice]]], device: str | torch.device) -> Packed:
        """From queries and keys, in one or several spans, of each block."""
        sides = []
        for side in zip(*blocks, strict=True):
            pieces = [own if isinstance(own, list) else [own] for own in side]
            index = torch.cat([torch.arange(span.start, span.stop) for spans in pieces for span in spans])
            sizes = [sum(span.stop - span.start for span in spans) for spans in pieces]
            ends = torch.tensor([0, *accumulate(sizes)], dtype=torch.int32)
            sides.append((index.to(device), ends.to(device), max(sizes)))
        (queries, ends_q, most_q), (keys, ends_k, most_k) = sides
        return cls(queries, keys, ends_q, ends_k, most_q, most_k)


def flash_packed(
    q: Float[torch.Tensor, "tok head d_head"],
    k: Float[torch.Tensor, "tok kv_head d_head"],
    v: Float[torch.Tensor, "tok kv_head d_head"],
    packed: Packed,
    scaling: float,
    *,
    causal: bool = False,
    window: int | None = None,
) -> Partial | None:
    """All blocks in one call: output [query, head, d_head] and log-sum-exp [query, head].

    With `causal`, a block's last query is at its last key; with `window`, it sees at most that many keys, its own
    included.
    """
    if not is_recent_gpu(q.device) or not _flash_takes(q) or (window is not None and not _TAKES_WINDOWS):
        return None
    # The kernel counts the keys before the query's own.
    sides = {} if window is None else {"window_size_left": window - 1, "window_size_right": 0}
    out, lse, *_ = packed_kernel(
        q[packed.queries],
        k[packed.keys],
        v[packed.keys],
        packed.ends_q,
        packed.ends_k,
        packed.most_q,
        packed.most_k,
        0.0,
        causal,
        False,
        scale=scaling,
        **sides,
    )
    # Older releases of torch pad it per block.
    return (out, lse.T) if lse.shape == (out.shape[1], out.shape[0]) else None
