"""Rotary embeddings by the GPU's kernel, here in Triton's interpreter: the bits of the models' own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers.models.cohere import modeling_cohere
from transformers.models.gpt_neox import modeling_gpt_neox
from transformers.models.llama import modeling_llama

from lensprune.engine import rotary
from lensprune.engine.decoding.row_keys import RowKeys
from lensprune.engine.rotary import fuse_rotary
from lensprune.models.bridge import unhooked_copy
from tests import DEVICE
from tests.helpers.tiny_models import logits_of, tiny

CPU = torch.device("cpu")
# The interpreter cuts bfloat16 off instead of rounding it.
DTYPES = ["float32", "float16"] if DEVICE == "cpu" else ["float32", "float16", "bfloat16"]


@pytest.fixture(scope="module")
def kernel() -> ModuleType:
    pytest.importorskip("triton")
    from lensprune.engine import rotary_kernel

    return rotary_kernel


@pytest.fixture
def calls(kernel: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The kernel is taken on every device; for each call, the number of tokens."""
    found: list[int] = []

    def rotate(*tensors: torch.Tensor) -> Any:
        found.append(tensors[0].shape[2])
        return kernel.rotate(*tensors)

    monkeypatch.setattr(rotary, "rotary_kernel", lambda device: rotate)
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n_heads", "n_kv", "n_tokens", "d_head"), [(4, 2, 5, 8), (9, 3, 3, 64), (10, 1, 1, 80)])
def test_the_bits_of_the_models_own(
    kernel: ModuleType, n_heads: int, n_kv: int, n_tokens: int, d_head: int, dtype: str
) -> None:
    torch.manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=DEVICE).to(getattr(torch, dtype))

    # As of projections: heads within tokens.
    q, k = (random(1, n_tokens, n, d_head).transpose(1, 2) for n in (n_heads, n_kv))
    cos, sin = random(1, n_tokens, d_head), random(1, n_tokens, 2 * d_head)[..., :d_head]
    for found, expected, x in zip(
        kernel.rotate(q, k, cos, sin), modeling_llama.apply_rotary_pos_emb(q, k, cos, sin), (q, k), strict=True
    ):
        assert torch.equal(found, expected)
        assert found.stride() == x.stride()
        assert (found != x).float().mean() > 0.9


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "phi3", "mixtral"])
def test_models_that_use_it(family: str, dtype: str, calls: list[int]) -> None:
    model = tiny(family, dtype)
    own = model.raw_model  # type: ignore[attr-defined]
    fused = unhooked_copy(own)
    n_layers = model.facts.n_layers
    # Phi-3's function can rotate a part of each head; here it rotates all of it.
    assert fuse_rotary(fused, CPU) == n_layers
    ids = torch.arange(3, 20, device=model.facts.device)[None]
    with torch.inference_mode():
        expected = own(input_ids=ids, use_cache=False).logits
        assert not calls
        found = fused(input_ids=ids, use_cache=False).logits
    assert calls == [17] * n_layers
    assert expected.abs().max() > 0.01
    assert torch.equal(found, expected)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "cohere"])
def test_models_that_do_not(family: str, calls: list[int]) -> None:
    model = tiny(family)
    own = model.raw_model  # type: ignore[attr-defined]
    fused = unhooked_copy(own)
    fuse_rotary(fused, CPU)
    assert torch.equal(*logits_of(own, fused))
    assert not calls


def test_without_a_kernel_nothing_is_replaced() -> None:
    fused = unhooked_copy(tiny("llama").raw_model)  # type: ignore[attr-defined]
    assert fuse_rotary(fused, CPU) == 0
    assert not any("forward" in vars(module) for module in fused.modules())


@pytest.mark.parametrize(
    ("own", "plain"),
    [
        (modeling_llama.apply_rotary_pos_emb, True),
        # Neighbours are rotated, not halves.
        (modeling_cohere.apply_rotary_pos_emb, False),
        # A part of each head is rotated, or all of it.
        (modeling_gpt_neox.apply_rotary_pos_emb, True),
        (lambda q, k, freqs: (q, k), False),
        (lambda q, k, cos, sin: (q, k), False),
        (lambda q, k, cos, sin: q @ cos, False),
    ],
)
def test_which_formulas_it_computes(own: Callable[..., Any], plain: bool) -> None:
    assert rotary._is_plain(own) is plain


def test_gradients_take_the_models_own(calls: list[int]) -> None:
    fused = unhooked_copy(tiny("llama").raw_model)  # type: ignore[attr-defined]
    fuse_rotary(fused, CPU)
    embedded = torch.randn(1, 4, 32, device=DEVICE, requires_grad=True)
    fused(inputs_embeds=embedded, use_cache=False).logits.sum().backward()
    assert not calls
    assert embedded.grad is not None
    assert embedded.grad.abs().max() > 0


def test_a_launch_is_on_the_tensors_device(kernel: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's own choice is the current device."""
    events: list[Any] = []

    @contextmanager
    def device_of(tensor: torch.Tensor) -> Iterator[None]:
        events.append(tensor)
        yield
        events.append("left")

    class Launched:
        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            return lambda *args, **options: events.append("launched")

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    row_kernel = pytest.importorskip("lensprune.engine.decoding.row_kernel")
    norm_kernel = pytest.importorskip("lensprune.engine.norm_kernel")
    for module in (kernel, row_kernel, norm_kernel):
        monkeypatch.setattr(module, "_kernel", Launched())
    q, k, index = torch.zeros(1, 2, 3, 16), torch.zeros(1, 1, 3, 16), torch.arange(2)
    kernel.rotate(q, k, torch.zeros(1, 3, 16), torch.zeros(1, 3, 16))
    keys = RowKeys(*(torch.zeros(2, 1, 4, 16) for _ in range(2)), index, 4)
    row_kernel.attend_rows(q[0], (k[0], k[0]), torch.empty_like(q[0]), keys, 1.0)
    norm_kernel.rms_norm(k, torch.ones(16), 1e-6, rounds_first=True)
    shapes = [event if isinstance(event, str) else event.shape for event in events]
    assert shapes == [part for tensor in (q, q[0], k) for part in (tensor.shape, "launched", "left")]
