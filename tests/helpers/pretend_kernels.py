"""A GPU's kernels of attention in plain torch on the CPU, with the checks of type, shape and layout that they make."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch

__all__ = ["attend_rows", "emulated", "rms_norm"]

aten = torch.ops.aten
_HALF = (torch.float16, torch.bfloat16)
_PADDED_TO = 32
"""Queries to which the memory-efficient kernel pads its log-sum-exp."""
_ALIGNED_BYTES = 16


def _attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None, causal: bool, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output [batch, head, query, d_head] in q's type, log-sum-exp [batch, head, query] in fp32."""
    repeat = q.shape[1] // k.shape[1]
    k, v = (t.repeat_interleave(repeat, 1) for t in (k, v))
    scores = torch.einsum("bhqd,bhkd->bhqk", q.float(), k.float()) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if bias is not None:
        scores = scores + bias.float()
    if causal:
        scores = scores.masked_fill(~torch.ones(scores.shape[-2:], dtype=torch.bool).tril(), -torch.inf)
    lse = scores.logsumexp(-1)
    weights = torch.exp(scores - lse.clamp(min=torch.finfo(torch.float32).min)[..., None])
    return torch.einsum("bhqk,bhkd->bhqd", weights, v.float()).to(q.dtype), lse


def emulated(
    unwrapped: Callable[[Any], Any],
    wrapped: Callable[[torch.Tensor, Any], torch.Tensor],
    kernel: Callable[[str], None],
    refuse: Callable[[Any, str], None],
) -> dict[Any, Callable[..., Any]]:
    """By operator. Their arguments lie on one device already; `wrapped` puts a tensor where another is."""

    def flash_takes(name: str, *tensors: torch.Tensor) -> None:
        kernel(name)
        for tensor in tensors:
            if tensor.dtype not in _HALF:
                refuse(name, f"{tensor.dtype}, where float16 or bfloat16 is needed")
            if tensor.stride(-1) != 1:
                refuse(name, f"strides {tensor.stride()}, where the last dimension has to be contiguous")
            if tensor.shape[-1] % 8 or tensor.shape[-1] > 256:
                refuse(name, f"heads of {tensor.shape[-1]} dimensions, where a multiple of 8 up to 256 is needed")

    def flash(
        q: Any, k: Any, v: Any, dropout: float = 0.0, causal: bool = False, debug: bool = False, *, scale: Any = None
    ) -> tuple[Any, ...]:
        flash_takes("aten._scaled_dot_product_flash_attention", q, k, v)
        if causal and q.shape[2] != k.shape[2]:
            refuse("aten._scaled_dot_product_flash_attention", "causal with fewer queries than keys")
        out, lse = _attention(*unwrapped((q, k, v)), scale, causal, None)
        return wrapped(out, q), wrapped(lse, q), None, None, q.shape[2], k.shape[2], None, None, None

    def efficient(
        q: Any, k: Any, v: Any, bias: Any, with_lse: bool, dropout: float = 0.0, causal: bool = False,
        *, scale: Any = None,
    ) -> tuple[Any, ...]:  # fmt: skip
        name = "aten._scaled_dot_product_efficient_attention"
        kernel(name)
        if q.shape[1] != k.shape[1]:
            refuse(name, f"{q.shape[1]} query heads and {k.shape[1]} of keys, where as many are needed")
        for tensor in (q, k, v):
            if tensor.stride(-1) != 1:
                refuse(name, f"strides {tensor.stride()}, where the last dimension has to be contiguous")
        if bias is not None:
            step = _ALIGNED_BYTES // bias.element_size()
            if bias.dtype != q.dtype or tuple(bias.shape) != (*q.shape[:3], k.shape[2]):
                refuse(name, f"a bias of {bias.dtype} and shape {tuple(bias.shape)}")
            if bias.stride(-1) != 1 or (bias.shape[-2] > 1 and bias.stride(-2) % step):
                refuse(name, f"a bias of strides {bias.stride()}, whose rows don't begin at aligned addresses")
        out, lse = _attention(*unwrapped((q, k, v)), scale, causal, unwrapped(bias))
        padded = torch.full((*lse.shape[:2], -(-q.shape[2] // _PADDED_TO) * _PADDED_TO), torch.inf)
        padded[..., : q.shape[2]] = lse
        # It lays heads out within tokens, and what it gives for queries that see nothing is not defined.
        out = out.masked_fill(torch.isneginf(lse)[..., None], torch.nan)
        out = out.transpose(1, 2).contiguous().transpose(1, 2)
        return wrapped(out, q), wrapped(padded, q), None, None

    def packed(
        q: Any, k: Any, v: Any, ends_q: Any, ends_k: Any, most_q: int, most_k: int, dropout: float, causal: bool,
        debug: bool, *, scale: Any = None, window_size_left: int | None = None, window_size_right: int | None = None,
    ) -> tuple[Any, ...]:  # fmt: skip
        name = "aten._flash_attention_forward"
        flash_takes(name, q, k, v)
        if ends_q.dtype != torch.int32 or ends_k.dtype != torch.int32:
            refuse(name, "bounds that are not int32")
        blocks_q, blocks_k = (list(pairwise(unwrapped(ends).tolist())) for ends in (ends_q, ends_k))
        for blocks, most, tensor in ((blocks_q, most_q, q), (blocks_k, most_k, k)):
            if max(end - begin for begin, end in blocks) != most or blocks[-1][1] != len(tensor):
                refuse(name, f"blocks {blocks} of {len(tensor)} tokens, the largest of which is given as {most}")
        like, (q, k, v) = q, unwrapped((q, k, v))
        out, lse = torch.empty_like(q), torch.empty(q.shape[1], len(q))
        for (begin_q, end_q), (begin_k, end_k) in zip(blocks_q, blocks_k, strict=True):
            own = q[begin_q:end_q], k[begin_k:end_k], v[begin_k:end_k]
            bias = None
            if not causal and (window_size_left, window_size_right) != (None, None):
                raise NotImplementedError("a window that isn't causal")
            if causal:
                # Positions are counted back from the last query and the last key.
                back = torch.arange(end_k - begin_k - 1, -1, -1) - torch.arange(end_q - begin_q - 1, -1, -1)[:, None]
                hidden = back < 0
                if window_size_left is not None:
                    hidden |= back > window_size_left
                bias = torch.where(hidden, -torch.inf, 0.0)
            part, norm = _attention(*(t.transpose(0, 1)[None] for t in own), scale, False, bias)
            out[begin_q:end_q], lse[:, begin_q:end_q] = part[0].transpose(0, 1), norm[0]
        return wrapped(out, like), wrapped(lse, like), None, None, None

    def histc(x: Any, bins: int = 100, min: float = 0, max: float = 0) -> torch.Tensor:
        # A GPU's takes integers, too.
        kernel("aten.histc")
        return wrapped(aten.histc(unwrapped(x).float(), bins, min, max).to(x.dtype), x)

    def fused_rms_norm(x: Any, shape: Any, weight: Any, epsilon: float | None) -> Any:
        kernel("aten._fused_rms_norm")
        own = torch.nn.functional.rms_norm(unwrapped(x), shape, unwrapped(weight), epsilon)
        rstd = torch.rsqrt(unwrapped(x).float().pow(2).mean(-1, keepdim=True) + (epsilon or 0.0))
        return wrapped(own, x), wrapped(rstd, x)

    return {
        aten._scaled_dot_product_flash_attention.default: flash,
        aten._scaled_dot_product_efficient_attention.default: efficient,
        aten._flash_attention_forward.default: packed,
        aten.histc.default: histc,
        # Which torch's norms call from 2.9 on; before, they consist of other operators.
        aten._fused_rms_norm.default: fused_rms_norm,
    }


def attend_rows(
    q: torch.Tensor,
    new: tuple[torch.Tensor, torch.Tensor],
    z: torch.Tensor,
    keys: Any,
    scaling: float,
    *,
    more: Any = None,
    seen: Any = None,
    edges: Any = None,
) -> None:
    """What `row_kernel.attend_rows` does, one query after another."""
    n_kv = keys.k.shape[1]
    last = keys if more is None else more
    for i, row in enumerate(keys.index.tolist()):
        call = i if keys.calls is None else int(keys.calls[i])
        for own, fresh in zip((last.k, last.v), new, strict=True):
            own[int(last.index[i]), :, last.end - 1] = fresh[call]
        begin = max(keys.first, 0 if keys.begins is None else int(keys.begins[row]))
        k, v = (t[row, :, begin : keys.end] for t in (keys.k, keys.v))
        if more is not None:
            other = int(more.index[i])
            k, v = (torch.cat([t, own[other, :, more.first : more.end]], 1) for t, own in ((k, more.k), (v, more.v)))
        their = i if keys.calls is None else row + keys.row_from
        if edges is not None:
            start, size, *lengths = edges.spans[their].tolist()
            seen_from, all_see = (min(max(length + edges.shift, 0), size) for length in lengths)
            group, columns = int(edges.group[their]), slice(start + seen_from, start + all_see)
            k, v = (torch.cat([t, own[group, :, columns]], 1) for t, own in ((k, edges.k), (v, edges.v)))
        scores = torch.einsum("grd,gkd->grk", q[call].unflatten(0, (n_kv, -1)).float(), k.float()) * scaling
        lse = scores.logsumexp(-1)
        out = torch.einsum("grk,gkd->grd", torch.exp(scores - lse[..., None]), v.float()).flatten(0, 1)
        lse = lse.flatten()
        if seen is not None:
            here = int(seen.group[their]), slice(None), int(seen.place[their])
            both = torch.logaddexp(lse, seen.lse[here])
            out = out * torch.exp(lse - both)[:, None]
            out += seen.out[here].float() * torch.exp(seen.lse[here] - both)[:, None]
        z[call] = out.to(z.dtype)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float, rounds_first: bool) -> torch.Tensor:
    """What `norm_kernel.rms_norm` does."""
    wide = torch.nn.functional.rms_norm(x.float(), weight.shape, None, epsilon)
    if rounds_first:
        wide = wide.to(x.dtype).float()
    return (wide * weight.float()).to(x.dtype)
