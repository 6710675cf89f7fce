"""What a GPU refuses, the pretend one refuses, by itself and in the midst of the package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lensprune.ablation import CLEAN, each_head, each_layer
from lensprune.engine import ForkedExecutor
from lensprune.engine.attention import AttentionSettings, partial_attention
from lensprune.engine.decoding import decoder, step_attention
from lensprune.engine.decoding.kv import VariantKV
from lensprune.engine.decoding.row_keys import RowKeys
from lensprune.engine.kernels import Packed, flash_packed
from lensprune.engine.tree import PrefixTree
from tests.helpers.generation import REFERENCE_PROMPTS
from tests.helpers.pretend_gpu import PlacementError, counting, settings
from tests.helpers.tiny_models import generation_requests, likelihood_requests, tiny


def gpu(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, device="cuda").to(dtype)


def heads(*shape: int) -> list[torch.Tensor]:
    return [gpu(*shape, dtype=torch.bfloat16) for _ in range(3)]


INDEX = [0, 2]
REFUSED: dict[str, Callable[[], Any]] = {
    "a sum with a CPU tensor": lambda: gpu(3) + torch.ones(3),
    "a product with a CPU matrix": lambda: gpu(3, 3) @ torch.ones(3, 3),
    "a linear map with CPU weights": lambda: torch.nn.functional.linear(gpu(3, 3), torch.ones(3, 3)),
    "a concatenation with a CPU tensor": lambda: torch.cat([gpu(3), torch.ones(3)]),
    "a comparison with a CPU tensor": lambda: torch.equal(gpu(3), torch.ones(3)),
    "a mask on the CPU": lambda: gpu(3).masked_fill(torch.ones(3) > 0, 0),
    "a number on the CPU in a product": lambda: torch.dot(gpu(1), torch.ones(())[None]),
    "a number on the CPU in a concatenation": lambda: torch.stack([gpu(1)[0], torch.ones(())]),
    "a result written into a CPU tensor": lambda: torch.ones(3).add_(gpu(3)),
    "a result written into a CPU number": lambda: torch.ones(()).add_(gpu(1)[0]),
    "an index on the CPU": lambda: gpu(3)[torch.tensor(INDEX)],
    "an index on the CPU for a write": lambda: gpu(3).__setitem__(torch.tensor(INDEX), 0.0),
    "an index on the GPU for a CPU tensor": lambda: torch.ones(3)[torch.tensor(INDEX, device="cuda")],
    "ids on the CPU for an embedding": lambda: torch.nn.functional.embedding(torch.tensor(INDEX), gpu(3, 3)),
    "a gathered index on the CPU": lambda: gpu(3).gather(0, torch.tensor(INDEX)),
    "values on the CPU for a write": lambda: gpu(3).__setitem__(torch.tensor(INDEX, device="cuda"), torch.ones(2)),
    "a generator of the CPU": lambda: torch.randn(3, device="cuda", generator=torch.Generator()),
    "draws by a generator of the CPU": lambda: torch.multinomial(gpu(3).abs(), 1, generator=torch.Generator()),
    "whole numbers multiplied as matrices": lambda: gpu(3, 3).long() @ gpu(3, 3).long(),
    "the CPU's kernel of attention": lambda: torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        *(gpu(1, 2, 4, 8) for _ in range(3))
    ),
    "flash attention in float32": lambda: torch.ops.aten._scaled_dot_product_flash_attention(
        *(gpu(1, 2, 4, 8) for _ in range(3))
    ),
    "flash attention to a last dimension in strides": lambda: torch.ops.aten._scaled_dot_product_flash_attention(
        *(t.transpose(2, 3) for t in heads(1, 2, 8, 8))
    ),
    "efficient attention with fewer key heads": lambda: torch.ops.aten._scaled_dot_product_efficient_attention(
        gpu(1, 4, 4, 8), gpu(1, 2, 4, 8), gpu(1, 2, 4, 8), None, True
    ),
    "efficient attention with a bias on the CPU": lambda: torch.ops.aten._scaled_dot_product_efficient_attention(
        *(gpu(1, 2, 8, 8) for _ in range(3)), torch.zeros(1, 2, 8, 8), True
    ),
    "efficient attention with rows at odd addresses": lambda: torch.ops.aten._scaled_dot_product_efficient_attention(
        gpu(1, 2, 3, 8), gpu(1, 2, 5, 8), gpu(1, 2, 5, 8), gpu(1, 2, 3, 5), True
    ),
    "variable lengths in 64 bits": lambda: torch.ops.aten._flash_attention_forward(
        *heads(4, 2, 8), *(torch.tensor([0, 4], device="cuda") for _ in range(2)), 4, 4, 0.0, True, False
    ),
    "variable lengths with a wrong longest": lambda: torch.ops.aten._flash_attention_forward(
        *heads(4, 2, 8), *(torch.tensor([0, 4], dtype=torch.int32, device="cuda") for _ in range(2)), 4, 3,
        0.0, True, False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what: str) -> None:
    with pytest.raises(PlacementError):
        REFUSED[what]()


def test_two_gpus_are_two_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="invalid device ordinal"):
        torch.ones(3, device="cuda:1")
    monkeypatch.setattr(settings, "n_devices", 2)
    other = torch.ones(3, device="cuda:1")
    assert str(other.device) == "cuda:1"
    assert other.to("cuda:0").device == torch.device("cuda", 0)
    with pytest.raises(PlacementError, match="cuda:0 and cuda:1"):
        gpu(3) + other


def test_a_range_has_its_length() -> None:
    numbers = torch.arange(14, device="cuda:0")
    assert (len(numbers), numbers.device.type, numbers.tolist()) == (14, "cuda", list(range(14)))


def test_numpy_is_refused() -> None:
    for convert in (lambda t: t.numpy(), __import__("numpy").asarray):
        with pytest.raises(TypeError, match=r"Use Tensor\.cpu"):
            convert(gpu(3))


def test_what_a_gpu_takes_is_right() -> None:
    """Numbers of no dimensions, copies, lists as indices, gradients, views, generators of its own."""
    x = torch.arange(6.0).reshape(2, 3)
    on_gpu = x.to("cuda")
    assert on_gpu.is_cuda
    assert torch.equal((on_gpu + torch.tensor(1.0)).cpu(), x + 1)
    assert torch.equal(torch.where(on_gpu > 2, on_gpu, torch.tensor(0.0)).cpu(), torch.where(x > 2, x, 0))
    assert torch.equal(on_gpu[:, [0, 2]].cpu(), x[:, [0, 2]])
    view = on_gpu[0]
    view[1] = 7
    assert on_gpu.tolist() == [[0, 7, 2], [3, 4, 5]]
    leaf = on_gpu.clone().requires_grad_()
    (leaf**2).sum().backward()
    assert leaf.grad is not None
    assert torch.equal(leaf.grad, 2 * on_gpu)
    generator = torch.Generator("cuda").manual_seed(3)
    drawn = torch.randn(4, device="cuda", generator=generator)
    assert torch.equal(drawn, torch.randn(4, device="cuda", generator=generator.manual_seed(3)))
    tied = torch.nn.ModuleList([torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)])
    tied[1].weight = tied[0].weight
    tied.to("cuda")
    assert tied[0].weight is tied[1].weight
    assert tied[0].weight.device.type == "cuda"


def test_emulated_attention_gives_what_products_give(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = heads(2, 4, 37, 16)
    settings_ = AttentionSettings(0.3, None, None)
    with counting() as counts:
        out, lse = partial_attention(q, k[:, :2], v[:, :2], settings_, causal=True)
    assert counts.kernels["aten._scaled_dot_product_flash_attention"] == 1
    wide = [t.cpu().double() for t in (q, k[:, :2], v[:, :2])]
    expected = partial_attention(*wide, settings_, causal=True)
    torch.testing.assert_close(out.cpu().double(), expected[0], rtol=0, atol=2e-2)
    torch.testing.assert_close(lse.cpu().double(), expected[1], rtol=0, atol=1e-3)
    packed = Packed.of([(slice(0, 20), slice(0, 20)), (slice(20, 37), slice(20, 37))], "cuda")
    flat = [t[0].transpose(0, 1) for t in (q, k[:, :2], v[:, :2])]
    result = flash_packed(*flat, packed, 0.3, causal=True)
    assert result is not None
    first = partial_attention(*(t[:1, :, :20] for t in wide), settings_, causal=True)
    torch.testing.assert_close(result[0][:20].cpu().double(), first[0][0].transpose(0, 1), rtol=0, atol=2e-2)


def test_kernels_and_waits_are_counted() -> None:
    x = gpu(4, 4)
    with counting() as counts:
        y = (x @ x).relu()[:2].T
        assert not counts.syncs
        assert sum(counts.kernels.values()) == 2
        y.sum().item()
        y[:, [0, 1]]
        y[y > 0]
        y.cpu()
    causes = [cause.partition(" at ")[0] for cause in counts.syncs.elements()]
    assert sorted(causes) == sorted(
        ["aten._local_scalar_dense.default", "copy to the device", "boolean index", "copy to the host"]
    )


def left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions of a tree's tokens stay on the CPU."""
    position_ids = PrefixTree.position_ids
    monkeypatch.setattr(PrefixTree, "position_ids", lambda self, device: position_ids(self, "cpu"))


def unsent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Indices of a decode step stay on the CPU."""
    sent = decoder.sent_at_once
    monkeypatch.setattr(decoder, "sent_at_once", lambda arrays, device: sent(arrays, "cpu"))


def buffers_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and values of a variant lie on the CPU."""
    empty = VariantKV.empty

    def on_cpu(*args: Any, **kwargs: Any) -> VariantKV:
        made = empty(*args, **kwargs)
        for block in made.blocks:
            block.rest = block.rest[0].cpu(), block.rest[1].cpu()
        return made

    monkeypatch.setattr(VariantKV, "empty", on_cpu)


def reference_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mean is not moved to where the activation is."""
    from lensprune.ablation.reference import ReferenceActivations

    mean = ReferenceActivations.mean
    monkeypatch.setattr(ReferenceActivations, "mean", lambda self, site, ids: mean(self, site, ids.cpu()))


def unaligned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks for the memory-efficient kernel lose their padding."""
    from lensprune.engine import kernels

    monkeypatch.setattr(kernels, "_ALIGNED", 1)


PLANTED = [left_behind, unsent, buffers_on_cpu, reference_on_cpu, unaligned]


@pytest.mark.parametrize("plant", PLANTED)
def test_a_planted_misplacement_is_found(plant: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    from lensprune.ablation import collect_reference

    model = tiny("llama")
    variants = [CLEAN, *each_layer(model, "mean", [1]), *each_head(model, layers=[0], heads=[1])]
    reference = collect_reference(model, REFERENCE_PROMPTS, variants)
    requests = [*likelihood_requests(model), *generation_requests(model)]
    executor = ForkedExecutor(model)
    plant(monkeypatch)
    with pytest.raises(Exception, match=r"CPU|cpu|aligned"):
        list(executor.run(requests, variants, reference=reference))


def test_a_row_kernel_s_argument_on_the_cpu_is_found() -> None:
    attend_rows = step_attention.rows_kernel(torch.device("cuda", 0))
    assert attend_rows is not None
    q, k, v = (gpu(2, 4, 8) for _ in range(3))
    keys = [gpu(3, 4, 9, 8) for _ in range(2)]
    index = torch.tensor([0, 2], device="cuda")
    attend_rows(q, (k, v), torch.empty_like(q), RowKeys(*keys, index, 9), 0.3)
    with pytest.raises(PlacementError):
        attend_rows(q, (k, v), torch.empty_like(q), RowKeys(*keys, index.cpu(), 9), 0.3)
    with pytest.raises(PlacementError, match="strides"):
        attend_rows(q.transpose(1, 2), (k, v), torch.empty_like(q), RowKeys(*keys, index, 9), 0.3)
