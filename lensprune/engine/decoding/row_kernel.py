"""One GPU kernel for the keys that each row of a decode step has to itself. Needs Triton, part of torch for CUDA.

With matrix products the same takes about 50 calls per layer, each of which costs the interpreter more time than the
GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float

from lensprune.engine.decoding.row_keys import RowKeys, Seen, WindowEdges

__all__ = ["attend_rows"]

_MAX_COLUMNS, _TILE_BYTES = 64, 2**14
"""Keys per tile, and bytes per tile: the keys and values of a tile must fit into shared memory."""

_MIN_DOT = 16
"""Smallest number of rows and columns in a tensor-core matrix product."""


def attend_rows(
    q: Float[torch.Tensor, "call head d_head"],
    new: tuple[Float[torch.Tensor, "call kv_head d_head"], Float[torch.Tensor, "call kv_head d_head"]],
    z: Float[torch.Tensor, "call head d_head"],
    keys: RowKeys,
    scaling: float,
    *,
    more: RowKeys | None = None,
    seen: Seen | None = None,
    edges: WindowEdges | None = None,
) -> None:
    """Attention of one query per row, written to `z`; the new token's key and value are stored too.

    Args:
        new: key and value of each query's own token. They go to the last column, before `end`, of `more`, or of `keys`
            without `more`.
        seen: attention to other keys, to be merged.
        edges: further keys.
    """
    n_queries = len(keys.index)
    if not n_queries:
        return
    _, n_heads, d_head = q.shape
    n_kv = keys.k.shape[1]
    second = keys if more is None else more
    (k_new, v_new), none = new, keys.index
    out, lse, group, place = (z, z, none, none) if seen is None else (seen.out, seen.lse, seen.group, seen.place)
    strides = [0] * 6 if seen is None else [*out.stride()[:3], *lse.stride()]
    edge_k, edge_v, edge_group, spans = (z, z, none, none)
    edge_strides, shift = [0] * 3, 0
    if edges is not None:
        edge_k, edge_v, edge_group, spans = edges.k, edges.v, edges.group, edges.spans
        edge_strides, shift = [*edges.k.stride()[:3]], edges.shift
    d_room = max(_MIN_DOT, triton.next_power_of_2(d_head))
    # Triton launches on the current device, which need not be the tensors'.
    with torch.cuda.device_of(q):
        _kernel[n_queries, n_kv](
            q, q.stride(0), q.stride(1),
            k_new, v_new, k_new.stride(0), k_new.stride(1), v_new.stride(0), v_new.stride(1),
            z, z.stride(0), z.stride(1),
            none if keys.calls is None else keys.calls,
            keys.k, keys.v, *keys.k.stride()[:3], keys.index, none if keys.begins is None else keys.begins, keys.first,
            keys.end,
            second.k, second.v, *second.k.stride()[:3], second.index, second.first, second.end,
            out, lse, *strides, group, place, keys.row_from,
            edge_k, edge_v, *edge_strides, edge_group, spans, shift,
            scaling,
            HAS_CALLS=keys.calls is not None,
            HAS_BEGINS=keys.begins is not None,
            HAS_MORE=more is not None,
            HAS_SEEN=seen is not None,
            HAS_EDGES=edges is not None,
            GROUP=n_heads // n_kv,
            GROUP_ROOM=max(_MIN_DOT, triton.next_power_of_2(n_heads // n_kv)),
            D_HEAD=d_head,
            D_ROOM=d_room,
            COLUMNS=max(_MIN_DOT, min(_MAX_COLUMNS, _TILE_BYTES // (d_room * keys.k.itemsize))),
        )  # fmt: skip


# Numbers that change from step to step, and tables whose addresses are aligned by chance: specialising on them would
# recompile the kernel again and again.
_CHANGING = ["a_first", "a_end", "b_first", "b_end", "row_from", "out_group", "lse_group", "lse_head", "lse_place"]
_CHANGING += ["calls", "a_index", "a_begins", "b_index", "seen_lse", "seen_group", "seen_place"]
_CHANGING += ["edge_group", "edge_spans", "shift"]


@triton.jit(do_not_specialize=_CHANGING)
def _kernel(
    q, q_row, q_head,
    k_new, v_new, k_new_row, k_new_head, v_new_row, v_new_head,
    z, z_row, z_head,
    calls,
    a_k, a_v, a_row, a_head, a_column, a_index, a_begins, a_first, a_end,
    b_k, b_v, b_row, b_head, b_column, b_index, b_first, b_end,
    seen_out, seen_lse, out_group, out_head, out_place, lse_group, lse_head, lse_place,
    seen_group, seen_place, row_from,
    edge_k, edge_v, edge_groups, edge_head, edge_column, edge_group, edge_spans, shift,
    scaling,
    HAS_CALLS: tl.constexpr,
    HAS_BEGINS: tl.constexpr,
    HAS_MORE: tl.constexpr,
    HAS_SEEN: tl.constexpr,
    HAS_EDGES: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_ROOM: tl.constexpr,
    D_HEAD: tl.constexpr,
    D_ROOM: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64)
    kv = tl.program_id(1)
    call = i
    if HAS_CALLS:
        call = tl.load(calls + i)
    mine = tl.load(a_index + i)
    member = tl.arange(0, GROUP_ROOM)
    head = kv * GROUP + member
    real_head = member < GROUP
    d = tl.arange(0, D_ROOM)
    real_d = d < D_HEAD
    here = real_head[:, None] & real_d[None]
    query = tl.load(q + call * q_row + head[:, None] * q_head + d[None], mask=here, other=0.0)
    key = tl.load(k_new + call * k_new_row + kv * k_new_head + d, mask=real_d, other=0.0)
    value = tl.load(v_new + call * v_new_row + kv * v_new_head + d, mask=real_d, other=0.0)

    # Its own token: every query sees it, so the running maximum is finite from here on.
    most = tl.sum(query.to(tl.float32) * key[None].to(tl.float32), 1) * scaling
    norm = tl.full((GROUP_ROOM,), 1.0, tl.float32)
    total = tl.zeros((GROUP_ROOM, D_ROOM), tl.float32) + value[None].to(tl.float32)
    row = i
    if HAS_CALLS:
        row = mine + row_from
    if HAS_SEEN:
        group, place = tl.load(seen_group + row), tl.load(seen_place + row)
        their_lse = seen_lse + group * lse_group + place * lse_place
        their_out = seen_out + group * out_group + place * out_place
        lse = tl.load(their_lse + head * lse_head, mask=real_head, other=float("-inf"))
        out = tl.load(their_out + head[:, None] * out_head + d[None], mask=here, other=0.0)
        before = most
        most = tl.maximum(before, lse)
        so_far, other = tl.exp(before - most), tl.exp(lse - most)
        norm = so_far + other
        total = total * so_far[:, None] + out.to(tl.float32) * other[:, None]

    if HAS_EDGES:
        span = edge_spans + 4 * row
        start, size = tl.load(span), tl.load(span + 1)
        low = tl.minimum(tl.maximum(tl.load(span + 2) + shift, 0), size)
        high = tl.minimum(tl.maximum(tl.load(span + 3) + shift, 0), size)
        place = tl.load(edge_group + row) * edge_groups + kv * edge_head + start * edge_column
        most, norm, total = _columns(
            query, edge_k + place, edge_v + place, edge_column, low.to(tl.int32), high.to(tl.int32), scaling,
            most, norm, total, d, real_d, COLUMNS,
        )  # fmt: skip

    begin = a_first
    if HAS_BEGINS:
        begin = tl.maximum(begin, tl.load(a_begins + mine).to(tl.int32))
    end = a_end
    if not HAS_MORE:
        end = a_end - 1
    keys, values = a_k + mine * a_row + kv * a_head, a_v + mine * a_row + kv * a_head
    most, norm, total = _columns(
        query, keys, values, a_column, begin, end, scaling, most, norm, total, d, real_d, COLUMNS
    )
    last_k, last_v = keys + (a_end - 1) * a_column, values + (a_end - 1) * a_column
    if HAS_MORE:
        theirs = tl.load(b_index + i)
        keys, values = b_k + theirs * b_row + kv * b_head, b_v + theirs * b_row + kv * b_head
        most, norm, total = _columns(
            query, keys, values, b_column, b_first, b_end - 1, scaling, most, norm, total, d, real_d, COLUMNS
        )
        last_k, last_v = keys + (b_end - 1) * b_column, values + (b_end - 1) * b_column
    tl.store(last_k + d, key, mask=real_d)
    tl.store(last_v + d, value, mask=real_d)
    result = total / norm[:, None]
    tl.store(z + call * z_row + head[:, None] * z_head + d[None], result.to(z.dtype.element_ty), mask=here)


@triton.jit
def _columns(
    query, keys, values, step, begin, end, scaling, most, norm, total, d, real_d, COLUMNS: tl.constexpr
):  # fmt: skip
    for start in range(begin, end, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        real = column < end
        place = column[:, None] * step + d[None]
        both = real[:, None] & real_d[None]
        k = tl.load(keys + place, mask=both, other=0.0)
        scores = tl.dot(query, tl.trans(k), input_precision="ieee") * scaling
        scores = tl.where(real[None], scores, float("-inf"))
        now = tl.maximum(most, tl.max(scores, 1))
        shrink, weights = tl.exp(most - now), tl.exp(scores - now[:, None])
        v = tl.load(values + place, mask=both, other=0.0)
        total = total * shrink[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        norm = norm * shrink + tl.sum(weights, 1)
        most = now
    return most, norm, total
