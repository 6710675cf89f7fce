"""Amounts of memory become budgets, and running out of it halves them without losing or changing an answer."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from lensprune.ablation import CLEAN, each_layer
from lensprune.engine import ForkedExecutor, HookedExecutor, make_executor
from lensprune.engine.decoding.decoder import GroupDecoder
from lensprune.engine.decoding.groups import ChunkSize, group_variants, request_chunks
from lensprune.engine.layers import LayerStack
from lensprune.engine.limits import DecodeLimits
from lensprune.engine.memory import gpu_limits, limits_for_memory, parse_memory
from lensprune.engine.out_of_memory import out_of_memory
from lensprune.engine.tree import chunk_sequences
from lensprune.errors import UserError
from lensprune.protocols.requests import GenerateRequest, LoglikelihoodRequest
from tests.helpers.tiny_models import generation_requests, likelihood_requests, tiny
from tests.helpers.tolerances import assert_responses_agree

SAID = (
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "Triton Error [CUDA]: out of memory",
    "HIP error: out of memory",
    "MPS backend out of memory (MPS allocated: 17.9 GB, other allocations: 1.2 MB, max allowed: 18.1 GB)",
    "Invalid buffer size: 12.21 GiB",
    "Native API failed. Native API returns: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)",
)
"""Of accelerators, in errors of no type of their own."""
CPU_ERROR = RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("4GB", 4 * 10**9), ("1.5GiB", 3 * 2**29), ("512 MB", 512 * 10**6), ("2g", 2 * 10**9), ("1000", 1000)],
)
def test_amounts_of_memory(text: str, expected: int) -> None:
    assert parse_memory(text) == expected


@pytest.mark.parametrize("text", ["", "GB", "-4GB", "0", "4 apples", "four"])
def test_bad_amounts_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="like 4GB"):
        parse_memory(text)


def test_more_memory_gives_larger_budgets_up_to_a_limit() -> None:
    facts = tiny("llama").facts
    small, large = limits_for_memory(facts, 50_000_000), limits_for_memory(facts, 200_000_000)
    assert small.tokens < large.tokens
    assert small.kv_bytes < large.kv_bytes
    assert small.rows <= large.rows
    assert limits_for_memory(facts, 10**13).tokens == limits_for_memory(facts, 10**14).tokens
    with pytest.raises(UserError, match="too little"):
        limits_for_memory(facts, 1000)
    executor = make_executor("forked", tiny("llama"), memory="50MB")
    assert isinstance(executor, ForkedExecutor)
    assert executor.limits == small


def test_a_gpus_free_memory_is_the_default_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = replace(tiny("llama").facts, device="cpu")
    assert gpu_limits(facts) is None
    on_gpu = replace(facts, device="cuda:0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert gpu_limits(on_gpu) is None
    free = {"mem_get_info": (700_000_000, 10**9), "memory_reserved": 400_000_000, "memory_allocated": 100_000_000}
    for name, value in {**free, "device_count": 1}.items():
        monkeypatch.setattr(torch.cuda, name, lambda *args, value=value: value)
    assert gpu_limits(on_gpu) == limits_for_memory(on_gpu, 800_000_000)
    assert gpu_limits(on_gpu, 500_000_000) == limits_for_memory(on_gpu, 400_000_000)
    assert limits_for_memory(on_gpu, 10**14).rows > limits_for_memory(facts, 10**14).rows
    assert gpu_limits(replace(facts, device="cuda:1")) is None
    with pytest.raises(UserError, match="too little"):
        gpu_limits(on_gpu, 999_999_000)


def test_groups_stay_within_their_limits_and_lose_nothing() -> None:
    model = tiny("llama")
    variants = [CLEAN, *each_layer(model), *each_layer(model, "zero")]
    asked = {
        i: r
        for i, r in enumerate(generation_requests(model) + generation_requests(model, 3))
        if isinstance(r, GenerateRequest)
    }
    for limits in (DecodeLimits(384, 2**30, 8192), DecodeLimits(10, 2**30, 8192), DecodeLimits(99, 60_000, 8192)):
        chunks = request_chunks(asked, variants, model.facts, limits)
        assert sorted(i for chunk in chunks for i in chunk) == sorted(asked)
        groups = list(group_variants(variants, model.facts, chunks, limits))
        assert [v for group in groups for v in group] == variants
        if limits.kv_bytes == 2**30:
            assert max(map(len, groups)) > 1
        for group in groups:
            for chunk in chunks:
                size = ChunkSize(model.facts, list(chunk.values())).kv_bytes(group)
                assert len(group) * len(chunk) <= limits.rows
                # A chunk that is too large for one variant is decoded all the same, alone.
                if len(group) > 1:
                    assert size <= limits.kv_bytes


@pytest.mark.parametrize("chosen", [slice(0, 4), slice(3, None), slice(None)])
def test_keys_and_values_held_are_those_that_were_planned(chosen: slice, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")
    variants = [CLEAN, *each_layer(model), *each_layer(model, "zero")][chosen]
    requests = [
        replace(r, until=(), max_new_tokens=40) for r in generation_requests(model) if isinstance(r, GenerateRequest)
    ]
    planned = ChunkSize(model.facts, requests).kv_bytes(variants)
    held: list[int] = []
    advance = GroupDecoder._advance

    def counted(self: GroupDecoder, *args: Any) -> torch.Tensor:
        hidden = advance(self, *args)
        [group] = self._groups
        pairs = [kv.pair for kv in group.attention.histories.values()]
        for diverged in group.attention.diverged.values():
            pairs += [diverged.shared, *(block.rest for block in diverged.blocks)]
        for clean in self._clean.values():
            pairs += [clean.rest, clean.shared]
        held.append(sum(t.numel() * t.element_size() for pair in pairs for t in pair))
        return hidden

    monkeypatch.setattr(GroupDecoder, "_advance", counted)
    list(ForkedExecutor(model).run(requests, variants))
    # Buffers of histories have a quarter of room to spare.
    assert max(held) <= 1.25 * planned
    assert max(held) >= 0.4 * planned


@pytest.mark.slow
@pytest.mark.parametrize(
    "error", [MemoryError(), torch.cuda.OutOfMemoryError("CUDA out of memory"), CPU_ERROR, RuntimeError(SAID[0])]
)
def test_out_of_memory_halves_the_budgets_and_goes_on(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny("llama")
    variants = [CLEAN, *each_layer(model)]
    requests = [*likelihood_requests(model), *generation_requests(model)]
    expected = list(HookedExecutor(model).run(requests, variants))
    executor = ForkedExecutor(model, max_tokens=256)
    run_layer, admit = LayerStack.run_layer, GroupDecoder._admit

    def small_layer(self: LayerStack, layer: int, hidden: torch.Tensor, *args: Any) -> torch.Tensor:
        # Fails in the midst of a chunk, when some variants are done.
        if hidden.shape[1] > 90 and layer == 2:
            raise error
        return run_layer(self, layer, hidden, *args)

    def small_admit(self: GroupDecoder, n_variants: int, running: np.ndarray) -> Any:
        if n_variants * len(self._table.requests) + len(running) > 3:
            raise error
        return admit(self, n_variants, running)

    monkeypatch.setattr(LayerStack, "run_layer", small_layer)
    monkeypatch.setattr(GroupDecoder, "_admit", small_admit)
    done: list[int] = []
    with caplog.at_level(logging.WARNING):
        found = list(executor.run(requests, variants, progress=done.append))
    assert_responses_agree(model, requests, found, expected)
    assert sum(done) == len(requests) * len(variants)
    assert executor.limits.tokens < 256
    assert "out of memory" in caplog.text


@pytest.mark.slow
def test_one_row_that_does_not_fit_and_other_errors_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")
    executor = ForkedExecutor(model)

    def fail(error: Exception) -> Any:
        def run_layer(*args: Any) -> torch.Tensor:
            raise error

        return run_layer

    monkeypatch.setattr(LayerStack, "run_layer", fail(MemoryError("too large")))
    with pytest.raises(MemoryError, match="too large"):
        list(executor.run(likelihood_requests(model), [CLEAN]))
    with pytest.raises(MemoryError, match="too large"):
        list(executor.run(generation_requests(model), [CLEAN]))
    monkeypatch.setattr(LayerStack, "run_layer", fail(RuntimeError("shapes differ")))
    before = executor.limits
    with pytest.raises(RuntimeError, match="shapes differ"):
        list(executor.run(likelihood_requests(model), [CLEAN]))
    assert executor.limits == before


def test_torch_says_what_is_taken_for_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    assert out_of_memory(caught.value)
    assert not out_of_memory(ValueError("not enough memory"))


@pytest.mark.parametrize("said", SAID)
def test_an_accelerator_says_it_in_a_plain_error(said: str) -> None:
    assert out_of_memory(RuntimeError(said))


@pytest.mark.parametrize(
    "said",
    ["out of resource: shared memory, Required: 262144", "CUDA error: an illegal memory access", "shapes differ"],
)
def test_what_a_smaller_batch_does_not_mend(said: str) -> None:
    assert not out_of_memory(RuntimeError(said))


def test_a_sequence_longer_than_the_budget_is_a_chunk_of_its_own() -> None:
    sequences = [(1,) * 30, (2,) * 3, (3,) * 3]
    assert list(chunk_sequences(sequences, 6)) == [[(1,) * 30], [(2,) * 3, (3,) * 3]]
    request = LoglikelihoodRequest((1,) * 30, (4,))
    model = tiny("llama")
    [answer] = ForkedExecutor(model, max_tokens=1).run([request], [CLEAN])
    assert len(answer.responses) == 1
