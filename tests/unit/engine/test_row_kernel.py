"""The GPU's kernel for decode steps, here in Triton's interpreter: as matrix products give, and as hooks give."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch

from lensprune.ablation import collect_reference
from lensprune.engine import ForkedExecutor, HookedExecutor
from lensprune.engine.attention import AttentionSettings, merge_into, partial_attention
from lensprune.engine.decoding import step_attention
from lensprune.engine.decoding.row_keys import RowKeys, Seen
from tests import DEVICE
from tests.helpers.generation import REFERENCE_PROMPTS, requests_for, variants_for
from tests.helpers.tiny_models import tiny
from tests.helpers.tolerances import assert_responses_agree, assert_tensors_agree

# Sums in float32; in a narrower type, weights and outputs are each rounded once, by half a unit at most.
ROUNDINGS_OF = {torch.float32: 4.0, torch.float16: 0.5 * 2**0.5}
if DEVICE != "cpu":
    # The interpreter's products of bfloat16 are wrong.
    ROUNDINGS_OF[torch.bfloat16] = 0.5 * 2**0.5


@pytest.fixture(scope="module")
def kernel() -> ModuleType:
    # Interpreters before can't loop over numbers that are loaded.
    pytest.importorskip("triton", minversion="3.7" if DEVICE == "cpu" else None)
    from lensprune.engine.decoding import row_kernel

    return row_kernel


def rows(n: int, *shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(n, *shape, device=DEVICE).to(dtype)


def in_groups(out: torch.Tensor, lse: torch.Tensor) -> Seen:
    """The rows' outputs and log-sum-exps, put into places of three groups, with the memory's order of places and heads
    exchanged, and other numbers between them."""
    n, n_heads, d_head = out.shape
    group = torch.arange(n, device=DEVICE) % 3
    place = torch.randperm(n, device=DEVICE)
    wide = out.new_full((3, n, n_heads, d_head), 7.0).transpose(1, 2)
    norms = lse.new_full((3, n_heads, n), 7.0)
    wide[group, :, place], norms[group, :, place] = out, lse
    return Seen(wide, norms, group, place)


def expected(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, allowed: torch.Tensor, seen: tuple[torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    """Products in fp32 over the keys, merged with what was seen."""
    settings = AttentionSettings(q.shape[-1] ** -0.5, None, None)
    out, lse = partial_attention(q[:, :, None].float(), k.float(), v.float(), settings, allowed=allowed[:, None])
    total = out[:, :, 0].clone(), lse[:, :, 0].clone()
    merge_into(total, (seen[0].float(), seen[1]))
    return total[0]


@pytest.mark.parametrize("dtype", ROUNDINGS_OF)
@pytest.mark.parametrize(
    ("n_heads", "n_kv", "d_head", "first"), [(4, 2, 8, 0), (9, 3, 64, 33), (4, 4, 24, 0), (2, 1, 80, 75)]
)
def test_as_products_give(
    kernel: ModuleType, dtype: torch.dtype, n_heads: int, n_kv: int, d_head: int, first: int
) -> None:
    torch.manual_seed(0)
    q, z = rows(7, n_heads, d_head, dtype=dtype), torch.zeros(7, n_heads, d_head, dtype=dtype, device=DEVICE)
    new = rows(7, n_kv, d_head, dtype=dtype), rows(7, n_kv, d_head, dtype=dtype)
    k, v = rows(9, n_kv, 90, d_head, dtype=dtype), rows(9, n_kv, 90, d_head, dtype=dtype)
    calls, index = torch.tensor([[5, 0, 3], [2, 8, 0]], device=DEVICE)
    begins, end = torch.randint(0, 70, (9,), device=DEVICE), 76
    seen = rows(12, n_heads, d_head, dtype=dtype), torch.randn(12, n_heads, device=DEVICE)
    seen[1][5] = -torch.inf
    seen[0][5] = 0
    keys = RowKeys(k, v, index, end, begins, calls, first)
    kernel.attend_rows(q, new, z, keys, d_head**-0.5, seen=in_groups(*seen), seen_from=3)
    assert torch.equal(k[index, :, end - 1], new[0][calls])
    assert torch.equal(v[index, :, end - 1], new[1][calls])
    allowed = torch.arange(end, device=DEVICE) >= begins[index][:, None].clamp(min=first)
    want = expected(
        q[calls], k[index][:, :, :end], v[index][:, :, :end], allowed, (seen[0][index + 3], seen[1][index + 3])
    )
    assert_tensors_agree(z[calls], want, dtype, roundings=ROUNDINGS_OF[dtype])
    assert not z[[1, 2, 4, 6]].any()


@pytest.mark.parametrize("dtype", ROUNDINGS_OF)
@pytest.mark.parametrize(("step", "firsts"), [(0, (0, 0)), (5, (0, 0)), (39, (0, 0)), (5, (50, 0)), (39, (70, 21))])
def test_two_places_of_keys(kernel: ModuleType, dtype: torch.dtype, step: int, firsts: tuple[int, int]) -> None:
    torch.manual_seed(1)
    q, z = rows(7, 4, 16, dtype=dtype), torch.empty(7, 4, 16, dtype=dtype, device=DEVICE)
    new = rows(7, 2, 16, dtype=dtype), rows(7, 2, 16, dtype=dtype)
    k, v = rows(9, 2, 70, 16, dtype=dtype), rows(9, 2, 70, 16, dtype=dtype)
    more_k, more_v = rows(11, 2, 40, 16, dtype=dtype), rows(11, 2, 40, 16, dtype=dtype)
    index, places = torch.tensor([[1, 1, 0, 3, 2, 2, 8], [10, 3, 2, 5, 6, 7, 0]], device=DEVICE)
    begins = torch.randint(0, 70, (9,), device=DEVICE)
    seen = rows(7, 4, 16, dtype=dtype), torch.randn(7, 4, device=DEVICE)
    keys = RowKeys(k, v, index, 70, begins, first=firsts[0])
    more = RowKeys(more_k, more_v, places, step + 1, first=firsts[1])
    kernel.attend_rows(q, new, z, keys, 0.25, more=more, seen=in_groups(*seen))
    assert torch.equal(more_k[places, :, step], new[0])
    both = [torch.cat([own[index], their[places][:, :, : step + 1]], 2) for own, their in ((k, more_k), (v, more_v))]
    columns, later = torch.arange(70, device=DEVICE), torch.arange(step + 1, device=DEVICE)
    allowed = torch.cat([columns >= begins[index][:, None].clamp(min=firsts[0]), (later >= firsts[1]).expand(7, -1)], 1)
    assert_tensors_agree(z, expected(q, *both, allowed, seen), dtype, roundings=ROUNDINGS_OF[dtype])


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "gemma2", "gemma3", "mistral"])
def test_same_tokens_as_hooked(kernel: ModuleType, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def counted(*args: Any, **kwargs: Any) -> None:
        nonlocal calls
        calls += 1
        kernel.attend_rows(*args, **kwargs)

    def always(device: torch.device) -> Callable[..., None]:
        return counted

    monkeypatch.setattr(step_attention, "rows_kernel", always)
    model = tiny(family)
    requests, chosen = requests_for(model, 4), variants_for(model)[::9]
    reference = collect_reference(model, REFERENCE_PROMPTS, chosen)
    found = list(ForkedExecutor(model).run(requests, chosen, reference=reference))
    assert_responses_agree(
        model, requests, found, list(HookedExecutor(model).run(requests, chosen, reference=reference)), reference
    )
    # Gemma 2 caps its scores; there products stay.
    assert (calls > 0) == (family != "gemma2")
