"""One GPU kernel for an RMS norm with its weight. Needs Triton, part of torch for CUDA."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float

__all__ = ["rms_norm"]


def rms_norm(
    x: Float[torch.Tensor, "*one group tok d"], weight: Float[torch.Tensor, " d"], epsilon: float, *, rounds_first: bool
) -> Float[torch.Tensor, "*one group tok d"]:
    """`x`, divided by its root mean square, times `weight`, all in float32.

    Dimensions before the last three must have size 1, and the last one must be contiguous.

    Args:
        epsilon: added to the mean square.
        rounds_first: round to the type of `x` before the product with the weight, too, not only after it.
    """
    out, (n_groups, n_tokens, d) = torch.empty_like(x), x.shape[-3:]
    if not x.numel():
        return out
    room = triton.next_power_of_2(d)
    # Triton launches on the current device, which need not be the tensors'.
    with torch.cuda.device_of(x):
        _kernel[(n_groups * n_tokens,)](
            x, x.stride(-3), x.stride(-2), out, out.stride(-3), out.stride(-2), n_tokens, weight, epsilon,
            D=d,
            ROOM=room,
            ROUNDS_FIRST=rounds_first,
            num_warps=min(max(room // 512, 1), 16),
        )  # fmt: skip
    return out


# Numbers that change from call to call: specialising on them would recompile the kernel again and again.
@triton.jit(do_not_specialize=["x_group", "out_group", "n_tokens"])
def _kernel(
    x, x_group, x_token, out, out_group, out_token, n_tokens, weight, epsilon,
    D: tl.constexpr,
    ROOM: tl.constexpr,
    ROUNDS_FIRST: tl.constexpr,
):  # fmt: skip
    group, token = (tl.program_id(0) // n_tokens).to(tl.int64), (tl.program_id(0) % n_tokens).to(tl.int64)
    d = tl.arange(0, ROOM)
    real = d < D
    wide = tl.load(x + group * x_group + token * x_token + d, mask=real, other=0.0).to(tl.float32)
    result = wide * tl.rsqrt(tl.sum(wide * wide) / D + epsilon)
    if ROUNDS_FIRST:
        result = result.to(out.dtype.element_ty).to(tl.float32)
    result = result * tl.load(weight + d, mask=real, other=0.0).to(tl.float32)
    tl.store(out + group * out_group + token * out_token + d, result.to(out.dtype.element_ty), mask=real)
