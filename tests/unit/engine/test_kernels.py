"""Fused attention against matrix products in double precision, with output and log-sum-exp."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
import torch

from lensprune.engine import attention, kernels, windows
from lensprune.engine.attention import AttentionSettings, TreeAttention, partial_attention
from lensprune.engine.kernels import Packed, flash_packed
from lensprune.engine.tree import build_tree
from lensprune.precision import accumulation_dtype
from tests import DEVICE
from tests.helpers.tolerances import ROUNDINGS, assert_tensors_agree, size_of

DTYPES = (torch.float64, torch.float32, torch.bfloat16)
ROUNDINGS_OF = {torch.bfloat16: 1}


def products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "fused_attention", lambda *args, **kwargs: None)


def by_block(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    ends_q: Any,
    ends_k: Any,
    most_q: int,
    most_k: int,
    *rest: Any,
    scale: float,
    window_size_left: int | None = None,
    window_size_right: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the GPU's kernel for packed blocks is said to do, one block after another."""  # fmt: skip
    _, causal, _ = rest
    out, lse = torch.empty_like(q), torch.empty(q.shape[1], len(q))
    settings = AttentionSettings(scale, None, None)
    for begin_q, end_q, begin_k, end_k in zip(ends_q[:-1], ends_q[1:], ends_k[:-1], ends_k[1:], strict=True):
        assert end_q - begin_q <= most_q
        assert end_k - begin_k <= most_k
        own = [
            t[None, a:b].transpose(1, 2) for t, a, b in ((q, begin_q, end_q), (k, begin_k, end_k), (v, begin_k, end_k))
        ]
        allowed = None
        if window_size_left is not None:
            # Counted from the block's last query and last key.
            assert causal
            assert window_size_right == 0
            before = torch.arange(end_q - begin_q)[:, None] + int(end_k - begin_k - end_q + begin_q)
            before = before - torch.arange(end_k - begin_k)
            allowed = ((before >= 0) & (before <= window_size_left))[None]
        part_out, part_lse = partial_attention(*own, settings, causal=causal and allowed is None, allowed=allowed)
        out[begin_q:end_q], lse[:, begin_q:end_q] = part_out[0].transpose(0, 1), part_lse[0]
    return out, lse


def heads(n: int, *shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(n, *shape, device=DEVICE).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask", ["none", "causal", "by key", "by query and key"])
@pytest.mark.parametrize(("n_heads", "n_kv", "n_queries", "n_keys"), [(4, 2, 37, 37), (9, 3, 1, 50), (2, 2, 5, 21)])
def test_as_products_give(
    mask: str, dtype: torch.dtype, n_heads: int, n_kv: int, n_queries: int, n_keys: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    if mask == "causal":
        n_keys = n_queries
    q = heads(6, n_heads, n_queries, 16, dtype=dtype)
    k, v = (heads(6, n_kv, n_keys, 16, dtype=dtype) for _ in range(2))
    allowed = None
    if mask.startswith("by"):
        shape = (6, n_queries if "query" in mask else 1, n_keys)
        allowed = torch.rand(shape, device=DEVICE) > 0.5
        allowed[2, 0] = False
    settings = AttentionSettings(0.3, None, None)
    out, lse = partial_attention(q, k, v, settings, causal=mask == "causal", allowed=allowed)
    products(monkeypatch)
    wide = (t.double() for t in (q, k, v))
    expected_out, expected_lse = partial_attention(*wide, settings, causal=mask == "causal", allowed=allowed)
    assert lse.dtype == accumulation_dtype(dtype)
    # Outputs are means of values; weights and outputs are each rounded once to the type.
    assert_tensors_agree(
        out, expected_out, dtype, size=size_of(v), roundings=ROUNDINGS_OF.get(dtype, ROUNDINGS), at_most=3e-2
    )
    if dtype == torch.bfloat16:
        # Scores may be rounded to bfloat16 before their exponentials are summed: by half a unit at most.
        assert_tensors_agree(lse, expected_lse, dtype, roundings=0.5)
    else:
        assert_tensors_agree(lse, expected_lse, dtype)


@pytest.mark.parametrize("window", [None, 20, 150])
@pytest.mark.parametrize(("n_heads", "n_kv", "d_head"), [(8, 2, 64), (9, 3, 64), (4, 4, 128)])
def test_a_tree_in_few_calls(
    n_heads: int, n_kv: int, d_head: int, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if DEVICE == "cpu":
        # How blocks are packed and merged is tested everywhere, the kernel itself on a GPU.
        monkeypatch.setattr(kernels, "is_recent_gpu", lambda device: True)
        monkeypatch.setattr(attention, "is_recent_gpu", lambda device: True)
        monkeypatch.setattr(kernels, "packed_kernel", by_block)
        products(monkeypatch)
    rng = Random(0)

    def words(low: int, high: int) -> list[int]:
        return [rng.randrange(1000) for _ in range(rng.randrange(low, high))]

    prefixes = [words(90, 200) for _ in range(2)]
    questions = [rng.choice(prefixes) + words(10, 90) for _ in range(12)]
    tree = build_tree([tuple(question + words(1, 40)) for question in questions for _ in range(4)])
    torch.manual_seed(0)
    q = heads(n_heads, len(tree), d_head, dtype=torch.bfloat16)
    k, v = (heads(n_kv, len(tree), d_head, dtype=torch.bfloat16) for _ in range(2))
    settings = AttentionSettings(d_head**-0.5, window, None)
    # Three calls or four, not one.
    monkeypatch.setattr(windows, "ROOM", 0.5 if window == 20 else 2)
    monkeypatch.setattr(windows, "LEAST_ROOM", 0)
    plan = TreeAttention(tree, DEVICE)
    found = plan.attend(q, k, v, settings)
    if window is not None:
        assert plan._windowed is not None
        by_kernel = plan._windowed.attend(*(t.transpose(0, 1) for t in (q, k, v)), settings.scaling, window)
        assert by_kernel is not None
        assert torch.equal(by_kernel, found)
        assert len(plan._windowed._calls[window]) in (3, 4)
    assert flash_packed(*(t.transpose(0, 1) for t in (q, k, v)), plan._packed[0], 0.1, causal=True) is not None  # type: ignore[index]
    products(monkeypatch)
    monkeypatch.setattr(plan, "_packed", None)
    expected = plan.attend(q.double(), k.double(), v.double(), settings)
    for limited in () if window is None else (None, window + 1):
        other = plan.attend(q.double(), k.double(), v.double(), AttentionSettings(d_head**-0.5, limited, None))
        assert (other - expected).norm() > 3e-2 * expected.norm()
    assert (found.double() - expected).norm() < 1e-2 * expected.norm()


def test_packed_blocks_lie_back_to_back() -> None:
    packed = Packed.of([(slice(5, 8), slice(0, 5)), (slice(10, 11), slice(8, 10))], "cpu")
    assert packed.queries.tolist() == [5, 6, 7, 10]
    assert packed.keys.tolist() == [0, 1, 2, 3, 4, 8, 9]
    assert packed.ends_q.tolist() == [0, 3, 4]
    assert packed.ends_k.tolist() == [0, 5, 7]
    assert (packed.most_q, packed.most_k) == (3, 5)
