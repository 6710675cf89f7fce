"""Decode steps that replay CUDA graphs write what the hooked executor writes, or go on without graphs and say so.

The pretend GPU's graphs leave nothing behind when they are captured, and compute only from what lies at the addresses
that they were captured with.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from statistics import median
from typing import Any

import pytest
import torch

from lensprune.ablation import (
    CLEAN,
    Ablation,
    Head,
    Layer,
    Variant,
    collect_reference,
    each_attention,
    each_head,
    each_layer,
)
from lensprune.engine import ForkedExecutor, HookedExecutor, VariantResponses, norms
from lensprune.engine import layer_graphs as graphs_module
from lensprune.models import as_hooked_model, load_model
from lensprune.models.base import HookedModel
from lensprune.protocols.requests import GenerateRequest, GenerateResponse, Request
from tests.helpers.generation import REFERENCE_PROMPTS, requests_for
from tests.helpers.pretend_graphs import PretendGraph
from tests.helpers.tiny_models import folder
from tests.helpers.tolerances import assert_responses_agree
from tests.pretend_gpu.counts import CHANGES, with_graphs

N_TOKENS = 14
MAX_LAUNCHES = 21
"""Per layer, those of the step included."""


@cache
def model(family: str, dtype: str = "float32") -> HookedModel:
    return as_hooked_model(load_model(folder(family), device="cuda", dtype=dtype))


def asked(own: HookedModel) -> list[Request]:
    """Rows that all run for as long, but for one, so that calls keep their sizes."""
    requests = [replace(r, max_new_tokens=N_TOKENS, until=("\x00",)) for r in _generating(own)]
    return [*requests[:7], replace(requests[7], max_new_tokens=3)]


def _generating(own: HookedModel) -> list[GenerateRequest]:
    return [request for request in requests_for(own) if isinstance(request, GenerateRequest)]


def changed(own: HookedModel) -> list[Variant]:
    kinds = ("zero", "mean", "resample")
    heads = [variant for kind in kinds for variant in each_head(own, kind, layers=[1], heads=[0, 1])]
    return [CLEAN, *each_layer(own), *each_layer(own, "mean"), *heads, *each_attention(own, layers=[1])]


def simple(own: HookedModel) -> list[Variant]:
    """Without reference activations."""
    return [CLEAN, *each_layer(own), *each_head(own, layers=[1])]


class Replays:
    """Counts the graphs that are captured and replayed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.captured = self.replayed = 0
        end, again = PretendGraph.capture_end, PretendGraph.replay

        def capture_end(graph: PretendGraph) -> None:
            end(graph)
            self.captured += 1

        def replay(graph: PretendGraph) -> None:
            again(graph)
            self.replayed += 1

        monkeypatch.setattr(PretendGraph, "capture_end", capture_end)
        monkeypatch.setattr(PretendGraph, "replay", replay)


def by_graphs(own: HookedModel, variants: list[Variant], reference: Any = None) -> list[VariantResponses]:
    return list(ForkedExecutor(own, graphs=True).run(asked(own), variants, reference=reference))


def texts(found: list[VariantResponses]) -> list[tuple[int, ...]]:
    return [r.token_ids for each in found for r in each.responses if isinstance(r, GenerateResponse)]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "gemma3", "mixtral"])
def test_same_tokens_as_hooked(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own = model(family)
    variants = changed(own)
    reference = collect_reference(own, REFERENCE_PROMPTS, variants)
    replays = Replays(monkeypatch)
    found = by_graphs(own, variants, reference)
    hooked = list(HookedExecutor(own).run(asked(own), variants, reference=reference))
    assert_responses_agree(own, asked(own), found, hooked, reference)
    assert len(set(texts(found))) > 20
    # Two per layer and capture, when the graphs are compared with the layer, too.
    assert 0 < 2 * replays.captured < replays.replayed


def test_gated_heads_are_changed_without_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a gate lies between attention and its projection, a change of heads can't be made between the graphs."""
    own = model("afmoe")
    heads = [CLEAN, *each_head(own, layers=[0, 1, 2])]
    replays = Replays(monkeypatch)
    found = by_graphs(own, heads)
    alone = list(ForkedExecutor(own).run(asked(own), heads))
    assert texts(found) == texts(alone)
    n_with_heads = replays.replayed
    by_graphs(own, [CLEAN])
    assert replays.replayed - n_with_heads > n_with_heads


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_types(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own = model("llama", dtype)
    replays = Replays(monkeypatch)
    found = texts(by_graphs(own, simple(own)))
    alone = texts(list(ForkedExecutor(own).run(asked(own), simple(own))))
    # Near ties may be decided otherwise.
    assert sum(a == b for a, b in zip(found, alone, strict=True)) > 0.8 * len(found)
    assert replays.replayed > 20


@pytest.mark.parametrize("changes", CHANGES)
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_launches_of_a_step(family: str, changes: str) -> None:
    steps = with_graphs(family, 5, changes)
    assert 5 * 5 < median(step.kernels for step in steps) <= MAX_LAUNCHES * 5
    assert max(step.syncs for step in steps[-3:]) <= 4


@pytest.mark.parametrize(("most", "idle"), [(1, 100), (1, 0)])
def test_few_sizes_are_kept(most: int, idle: int, monkeypatch: pytest.MonkeyPatch) -> None:
    own = model("llama")
    right = texts(list(ForkedExecutor(own).run(asked(own), simple(own))))
    kept: list[set[int]] = []
    of_size = graphs_module.LayerGraphs._of_size

    def counted(self: Any, size: int) -> Any:
        found = of_size(self, size)
        kept.append(set(self._sizes))
        return found

    monkeypatch.setattr(graphs_module, "MAX_SIZES", most)
    monkeypatch.setattr(graphs_module, "IDLE_STEPS", idle)
    monkeypatch.setattr(graphs_module.LayerGraphs, "_of_size", counted)
    assert texts(by_graphs(own, simple(own))) == right
    assert max(map(len, kept)) == most
    # Sizes that are in use keep their place.
    assert (len(set().union(*kept)) > most) == (idle < 100)


def unchanged_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rotary angles stay those of the step at which a graph was captured."""
    of = graphs_module._LayerGraph.run

    def run(self: Any, call: Any) -> torch.Tensor:
        return of(self, replace(call, tensors=[own[:, : call.n_tokens] for own in self.padded.tensors]))

    monkeypatch.setattr(graphs_module._LayerGraph, "run", run)


def unchanged_z(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention's results don't reach what comes after it."""
    replayed = graphs_module._LayerGraph.replayed
    monkeypatch.setattr(graphs_module._LayerGraph, "replayed", lambda self, attend: replayed(self, lambda: None))


def results_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer writes its result where that of the layer below lies, which still is needed."""
    buffer = graphs_module._Size.buffer

    def one(self: Any, name: str, like: torch.Tensor) -> torch.Tensor:
        return buffer(self, name.replace("out 1", "out 0"), like)

    monkeypatch.setattr(graphs_module._Size, "buffer", one)


@pytest.mark.parametrize("fault", [unchanged_arguments, unchanged_z, results_shared])
def test_faults_change_texts(fault: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    own = model("llama")
    # Its rows are computed in layer 0, left out of layer 1, and computed again.
    both = Variant("both", (Ablation(Head(0, 1), "zero"), Ablation(Layer(1), "skip")))
    variants, requests = [CLEAN, both], asked(own)[:3]
    right = texts(list(ForkedExecutor(own).run(requests, variants)))
    assert texts(list(ForkedExecutor(own, graphs=True).run(requests, variants))) == right
    fault(monkeypatch)
    assert texts(list(ForkedExecutor(own, graphs=True).run(requests, variants))) != right


def waits(monkeypatch: pytest.MonkeyPatch, own: HookedModel) -> str:
    """A layer reads a number back, so that a capture would fail, and none is begun."""
    mlp = type(_layers(own)[1].mlp)
    forward = mlp.forward
    monkeypatch.setattr(mlp, "forward", lambda self, x: forward(self, x) * float(x.abs().max() > -1))
    monkeypatch.setattr(PretendGraph, "capture_begin", lambda *args, **options: pytest.fail("a capture"))
    return "called a synchronizing CUDA operation"


def other_numbers(monkeypatch: pytest.MonkeyPatch, own: HookedModel) -> str:
    """A graph gives something else than the layer."""
    again = PretendGraph.replay

    def replay(graph: PretendGraph) -> None:
        again(graph)
        for _, results in graph.work[-1:]:
            results[0].mul_(1.01)

    monkeypatch.setattr(PretendGraph, "replay", replay)
    return "gives another v"


def no_graphs(monkeypatch: pytest.MonkeyPatch, own: HookedModel) -> str:
    def capture_begin(graph: PretendGraph, **options: Any) -> None:
        raise RuntimeError("CUDA error: no graphs today\nand more")

    monkeypatch.setattr(PretendGraph, "capture_begin", capture_begin)
    return "no graphs today"


def no_memory(monkeypatch: pytest.MonkeyPatch, own: HookedModel) -> str:
    def capture_begin(graph: PretendGraph, **options: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(PretendGraph, "capture_begin", capture_begin)
    return "memory ran out"


def _layers(own: HookedModel) -> Any:
    raw: Any = own
    return raw.raw_model.model.layers


@pytest.mark.parametrize("fault", [waits, other_numbers, no_graphs, no_memory])
def test_what_cannot_be_captured_runs_without_graphs(
    fault: Callable[[pytest.MonkeyPatch, HookedModel], str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    own = model("llama")
    variants = simple(own)
    right = texts(list(ForkedExecutor(own).run(asked(own), variants)))
    why = fault(monkeypatch, own)
    executor = ForkedExecutor(own, graphs=True)
    with caplog.at_level(logging.WARNING, logger="lensprune"):
        for _ in range(2):
            assert texts(list(executor.run(asked(own), variants))) == right
    # Once, however many groups of requests are decoded one after another.
    [record] = caplog.records
    assert "decode steps run without CUDA graphs: layer" in record.message
    assert why in record.message
    assert "\n" not in record.message
    assert PretendGraph.capturing is None


def test_runs_within_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs of a run go on being right while another one runs, and a norm's factor is computed anew."""
    own = model("gemma3")
    executor, variants = ForkedExecutor(own, graphs=True), simple(own)
    right = texts(list(ForkedExecutor(own).run(asked(own), variants)))
    replays, refresh = Replays(monkeypatch), norms._GemmaNorm.refresh

    def refreshed(norm: Any) -> None:
        before = norm.factor if "factor" in vars(norm) else None
        refresh(norm)
        if before is not None and before is not norm.factor:
            # Its memory now is somebody else's.
            before.fill_(1e3)

    monkeypatch.setattr(norms._GemmaNorm, "refresh", refreshed)
    before: list[int] = []
    found = []

    def on_work(*args: Any) -> None:
        before.append(replays.replayed)
        executor._stack.refresh()

    for answered in executor.run(asked(own), variants, on_work=on_work):
        found.append(answered)
        list(executor.run(asked(own)[:1], [CLEAN]))
    assert len({n for n in before if 0 < n < replays.replayed}) > 0
    assert executor._graphs is not None
    assert not executor._graphs._sizes, "memory is not given back"
    assert texts(found) == right
    assert replays.replayed > 50


def test_memory_that_runs_out_for_a_layer_halves_the_batch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    own = model("llama")
    variants = simple(own)
    right = texts(list(ForkedExecutor(own).run(asked(own), variants)))
    run, left = graphs_module._LayerGraph.run, [1]

    def once(graph: Any, call: Any) -> torch.Tensor:
        if left and left.pop():
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return run(graph, call)

    monkeypatch.setattr(graphs_module._LayerGraph, "run", once)
    replays = Replays(monkeypatch)
    with caplog.at_level(logging.WARNING, logger="lensprune"):
        assert texts(by_graphs(own, variants)) == right
    assert "out of memory" in caplog.text
    assert "without CUDA graphs" not in caplog.text
    assert replays.replayed > 20
