"""The GPU's kernel for decode steps, here in Triton's interpreter: as matrix products give, and as hooks give."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from lensprune.ablation import CLEAN, collect_reference, each_head, each_layer
from lensprune.engine import ForkedExecutor, HookedExecutor
from lensprune.engine.attention import AttentionSettings, merge_into, partial_attention
from lensprune.engine.decoding import step_attention
from lensprune.engine.decoding.row_keys import RowKeys, Seen, WindowEdges
from lensprune.models import as_hooked_model, load_model
from tests import DEVICE
from tests.helpers.families import save_folder
from tests.helpers.generation import REFERENCE_PROMPTS, requests_for, requests_for_windows, variants_for
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
    keys = RowKeys(k, v, index, end, begins, calls, first, row_from=3)
    kernel.attend_rows(q, new, z, keys, d_head**-0.5, seen=in_groups(*seen))
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


@pytest.mark.parametrize("dtype", ROUNDINGS_OF)
@pytest.mark.parametrize("by_place", [True, False])
@pytest.mark.parametrize("shift", [-90, -45, -20, 20])
def test_edges_of_windows(kernel: ModuleType, dtype: torch.dtype, by_place: bool, shift: int) -> None:
    torch.manual_seed(2)
    q, z = rows(5, 4, 16, dtype=dtype), torch.empty(5, 4, 16, dtype=dtype, device=DEVICE)
    new = rows(5, 2, 16, dtype=dtype), rows(5, 2, 16, dtype=dtype)
    k, v = rows(9, 2, 8, 16, dtype=dtype), rows(9, 2, 8, 16, dtype=dtype)
    # Prefixes of 20, 70 and 0 columns for each of three variants, with something else between them.
    shared_k, shared_v = rows(3, 2, 100, 16, dtype=dtype), rows(3, 2, 100, 16, dtype=dtype)
    n_rows = 9 if by_place else 5
    spans = torch.tensor([[0, 20, 25, 60], [25, 70, 80, 140], [0, 0, 50, 50]], device=DEVICE)
    spans = spans[torch.arange(n_rows, device=DEVICE) % 3]
    spans[:, 2] += torch.arange(n_rows, device=DEVICE)
    group = torch.arange(n_rows, device=DEVICE) % 2 + 1
    index = torch.tensor([6, 2, 3, 0, 1], device=DEVICE)
    calls = torch.tensor([1, 0, 4, 2, 3], device=DEVICE) if by_place else None
    seen = rows(n_rows, 4, 16, dtype=dtype), torch.randn(n_rows, 4, device=DEVICE)
    keys = RowKeys(k, v, index, 8, calls=calls, row_from=2 if by_place else 0)
    edges = WindowEdges(shared_k, shared_v, group, spans, shift)
    kernel.attend_rows(q, new, z, keys, 0.25, seen=in_groups(*seen), edges=edges)
    of_call = torch.arange(5, device=DEVICE) if calls is None else calls
    row = index + 2 if by_place else of_call
    start, size, length, longest = spans[row].T
    columns = torch.arange(100, device=DEVICE) - start[:, None]
    low, high = ((limit + shift).clamp(min=0).minimum(size)[:, None] for limit in (length, longest))
    allowed = (columns >= low) & (columns < high)
    assert bool(allowed.any()) == (shift < 0)
    assert not bool(allowed.all())
    own = torch.ones(5, 8, dtype=torch.bool, device=DEVICE)
    both = [torch.cat([mine[index], their[group[row]]], 2) for mine, their in ((k, shared_k), (v, shared_v))]
    before = seen[0][row], seen[1][row]
    want = expected(q[of_call], *both, torch.cat([own, allowed], 1), before)
    assert_tensors_agree(z[of_call], want, dtype, roundings=ROUNDINGS_OF[dtype])


@pytest.mark.slow
@pytest.mark.parametrize("window", [8, 44, 70])
def test_same_tokens_as_hooked_under_windows(
    kernel: ModuleType, window: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edges: Counter[str] = Counter()

    def counted(*args: Any, **kwargs: Any) -> None:
        found, seen = kwargs["edges"], kwargs["seen"]
        edges[f"{'edges' if found is not None else 'none'}, {'prefix' if seen is not None else 'nothing'}"] += 1
        kernel.attend_rows(*args, **kwargs)

    monkeypatch.setattr(step_attention, "rows_kernel", lambda device: counted)
    model = as_hooked_model(load_model(save_folder("gemma3", tmp_path, sliding_window=window)))
    requests, chosen = requests_for_windows(), [CLEAN, *each_layer(model), *each_head(model, layers=[1])]
    found = list(ForkedExecutor(model).run(requests, chosen))
    assert_responses_agree(model, requests, found, list(HookedExecutor(model).run(requests, chosen)))
    assert set(edges) >= {8: {"edges, nothing", "none, nothing"}, 44: {"edges, prefix"}, 70: {"edges, prefix"}}[window]


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
