"""One GPU kernel for the rotary embedding of queries and keys. Needs Triton, part of torch for CUDA."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float

__all__ = ["rotate"]

_HEADS = 8
"""Heads per program."""


def rotate(
    q: Float[torch.Tensor, "1 head tok d_head"],
    k: Float[torch.Tensor, "1 kv_head tok d_head"],
    cos: Float[torch.Tensor, "1 tok d_head"],
    sin: Float[torch.Tensor, "1 tok d_head"],
) -> tuple[Float[torch.Tensor, "1 head tok d_head"], Float[torch.Tensor, "1 kv_head tok d_head"]]:
    """Queries and keys times `cos`, plus their exchanged halves, the first negated, times `sin`.

    Each product is rounded to the type, as by separate kernels. The last dimension of all four must be contiguous.
    """
    _, n_heads, n_tokens, d_head = q.shape
    n_kv = k.shape[1]
    new_q, new_k = torch.empty_like(q), torch.empty_like(k)
    if not n_tokens:
        return new_q, new_k
    # Triton launches on the current device, which need not be the tensors'.
    with torch.cuda.device_of(q):
        _kernel[n_tokens, triton.cdiv(n_heads, _HEADS) + triton.cdiv(n_kv, _HEADS)](
            q, q.stride(1), q.stride(2), new_q, new_q.stride(1), new_q.stride(2),
            k, k.stride(1), k.stride(2), new_k, new_k.stride(1), new_k.stride(2),
            cos, cos.stride(1), sin, sin.stride(1),
            N_HEADS=n_heads,
            N_KV=n_kv,
            HEADS=_HEADS,
            HALF=d_head // 2,
            ROOM=triton.next_power_of_2(d_head // 2),
            # A product and a sum in one instruction would not be rounded in between.
            enable_fp_fusion=False,
        )  # fmt: skip
    return new_q, new_k


@triton.jit
def _kernel(
    q, q_head, q_token, new_q, new_q_head, new_q_token,
    k, k_head, k_token, new_k, new_k_head, new_k_token,
    cos, cos_token, sin, sin_token,
    N_HEADS: tl.constexpr,
    N_KV: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    ROOM: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    of_queries = (N_HEADS + HEADS - 1) // HEADS
    d = tl.arange(0, ROOM)
    cos, sin = cos + token * cos_token + d, sin + token * sin_token + d
    real = d < HALF
    cos_1, cos_2 = tl.load(cos, mask=real, other=0.0), tl.load(cos + HALF, mask=real, other=0.0)
    sin_1, sin_2 = tl.load(sin, mask=real, other=0.0), tl.load(sin + HALF, mask=real, other=0.0)
    if block < of_queries:
        head = block * HEADS + tl.arange(0, HEADS)
        _rotate_heads(
            q + token * q_token, q_head, new_q + token * new_q_token, new_q_head,
            head, N_HEADS, d, cos_1, cos_2, sin_1, sin_2, HALF,
        )  # fmt: skip
    else:
        head = (block - of_queries) * HEADS + tl.arange(0, HEADS)
        _rotate_heads(
            k + token * k_token, k_head, new_k + token * new_k_token, new_k_head,
            head, N_KV, d, cos_1, cos_2, sin_1, sin_2, HALF,
        )  # fmt: skip


@triton.jit
def _rotate_heads(
    x, x_head, new, new_head, head, n_heads, d, cos_1, cos_2, sin_1, sin_2, HALF: tl.constexpr
):  # fmt: skip
    real = (head < n_heads)[:, None] & (d < HALF)[None]
    place = x + head[:, None] * x_head + d[None]
    x_1, x_2 = tl.load(place, mask=real, other=0.0), tl.load(place + HALF, mask=real, other=0.0)
    place = new + head[:, None] * new_head + d[None]
    tl.store(place, _sum(x_1, cos_1, x_2, -sin_1.to(tl.float32)), mask=real)
    tl.store(place + HALF, _sum(x_2, cos_2, x_1, sin_2.to(tl.float32)), mask=real)


@triton.jit
def _sum(a, cos, b, sin):
    first = (a.to(tl.float32) * cos[None].to(tl.float32)).to(a.dtype)
    second = (b.to(tl.float32) * sin[None]).to(a.dtype)
    return (first.to(tl.float32) + second.to(tl.float32)).to(a.dtype)
