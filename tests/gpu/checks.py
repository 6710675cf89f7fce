"""The checks: each takes the device, returns what it measured and fails with an AssertionError."""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any
from unittest import mock

import numpy as np
import torch

import lensprune as lp
from lensprune.ablation import CLEAN, Variant, collect_reference, each_head, each_layer
from lensprune.attribution import edge_attribution
from lensprune.engine import ForkedExecutor, HookedExecutor, VariantResponses, layer_graphs, make_executor
from lensprune.engine.decoding.decoder import GroupDecoder
from lensprune.engine.estimates import estimate_logprobs
from lensprune.engine.memory import limits_for_memory
from lensprune.engine.probe import PROBE_TOLERANCE
from lensprune.models import as_hooked_model, load_model
from lensprune.models.base import HookedModel
from lensprune.protocols.requests import GenerateRequest, LoglikelihoodRequest, LoglikelihoodResponse, Request
from lensprune.sweeps.selection import VariantSelection
from tests.helpers.attribution import PAIRS
from tests.helpers.generation import REFERENCE_PROMPTS, requests_for, variants_for
from tests.helpers.tiny_models import folder, likelihood_requests

__all__ = ["CHECKS", "Check"]

Measured = dict[str, Any]
FAMILIES = ("llama", "qwen3", "gpt2", "gemma2", "gemma3", "mixtral")
DTYPES = ("float32", "bfloat16", "float16")
SUITE = ("engine", "ablation", "attribution", "heads", "replacement", "planning", "sweep")
TRAINED = "smollm2-135m"
TASKS = ("facts", "arithmetic", "kv_retrieval[pairs=4]")
PROTOCOLS = ("default", "continuation", "generate")
SMALL_SHARE = 0.03
"""Of the GPU's memory, so that a batch of ordinary size does not fit."""


@dataclass(frozen=True)
class Check:
    """`run` takes a device; after `seconds` an alarm ends it."""

    run: Callable[[str], Measured]
    seconds: int
    summary: str


CHECKS: dict[str, Check] = {}


def check(seconds: int) -> Callable[[Callable[[str], Measured]], Callable[[str], Measured]]:
    """Decorator: list a function among `CHECKS`, under its name."""

    def listed(run: Callable[[str], Measured]) -> Callable[[str], Measured]:
        CHECKS[run.__name__] = Check(run, seconds, (run.__doc__ or "").partition("\n")[0])
        return run

    return listed


@cache
def loaded(device: str, name: str, dtype: str = "float32", seed: int = 0) -> HookedModel:
    path = name if name in ("toy-base", "toy-distilled", TRAINED) else folder(name, seed)
    return as_hooked_model(load_model(path, device=device, dtype=dtype))


def _pytest(paths: Sequence[str], *options: str) -> Measured:
    """Outcomes of a test run on the GPU."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, *paths]
    environment = {**os.environ, "LENSPRUNE_TEST_DEVICE": "cuda"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    *_, last = done.stdout.strip().splitlines()
    counts = {what: int(n) for n, what in re.findall(r"(\d+) (passed|failed|skipped|error)", last)}
    assert done.returncode == 0, f"{last}\n{done.stdout[-3000:]}"
    return counts


@check(90)
def kernels(device: str) -> Measured:
    """The package's kernels against products in double precision, and against the models' own (pytest)."""
    return _pytest([f"tests/unit/engine/test_{name}.py" for name in ("kernels", "row_kernel", "rotary", "norms")])


@check(240)
def suite(device: str) -> Measured:
    """The unit tests of what runs on a GPU (pytest)."""
    paths = [f"tests/unit/{name}" for name in SUITE]
    return _pytest([*paths, "tests/planted"], "-n", str(min(10, os.cpu_count() or 1)), "--dist", "loadfile")


def _by_both(
    model: HookedModel, requests: Sequence[Request], variants: Sequence[Variant], reference: Any
) -> Iterator[tuple[VariantResponses, VariantResponses]]:
    """Each variant's responses, forked and hooked, which may finish variants in another order."""
    runs = [own(model).run(requests, variants, reference=reference) for own in (ForkedExecutor, HookedExecutor)]
    yield from zip(*(sorted(run, key=lambda answered: answered.variant.name) for run in runs), strict=True)


@check(90)
def forked_equals_hooked(device: str) -> Measured:
    """Both executors on six families in three precisions: largest differences of log-probabilities, nats a token."""
    measured: Measured = {}
    for dtype in DTYPES:
        worst = 0.0
        for family in FAMILIES:
            model = loaded(device, family, dtype)
            requests = [r for r in likelihood_requests(model) if isinstance(r, LoglikelihoodRequest)]
            variants = variants_for(model)[::4]
            reference = collect_reference(model, REFERENCE_PROMPTS, variants)
            for mine, other in _by_both(model, requests, variants, reference):
                for a, b in zip(mine.responses, other.responses, strict=True):
                    assert isinstance(a, LoglikelihoodResponse)
                    assert isinstance(b, LoglikelihoodResponse)
                    difference = abs(a.logprob - b.logprob) / b.n_tokens / max(1.0, abs(b.logprob) / b.n_tokens / 4)
                    assert difference <= PROBE_TOLERANCE[dtype], (family, dtype, mine.variant.name, a, b)
                    worst = max(worst, difference)
        measured[dtype] = worst
    return measured


@check(60)
def generations(device: str) -> Measured:
    """Texts of both executors in float32 on six families: how many of them are equal."""
    same = compared = 0
    for family in FAMILIES:
        model = loaded(device, family)
        requests, variants = requests_for(model, 8), variants_for(model)[::6]
        reference = collect_reference(model, REFERENCE_PROMPTS, variants)
        for mine, other in _by_both(model, requests, variants, reference):
            compared += len(requests)
            same += sum(a == b for a, b in zip(mine.responses, other.responses, strict=True))
    assert same >= 0.9 * compared, f"{same} of {compared}"
    return {"equal": same, "compared": compared}


@check(90)
def graphs(device: str) -> Measured:
    """Steps that replay CUDA graphs: texts equal to those without, and times as fast as without."""
    same = compared = 0
    measured: Measured = {}
    with mock.patch.object(layer_graphs, "CALLS_BEFORE", 0):
        for family in FAMILIES:
            model = loaded(device, family)
            requests, variants = requests_for(model, 16), [CLEAN, *each_layer(model), *each_head(model, layers=[1])]
            replayed = mock.Mock(side_effect=layer_graphs._LayerGraph.replayed)
            with mock.patch.object(layer_graphs._LayerGraph, "replayed", lambda *args, run=replayed: run(*args)):
                found = list(ForkedExecutor(model, graphs=True).run(requests, variants))
            assert replayed.call_count > 20, f"{family}: {replayed.call_count} replays, see the log"
            for mine, other in zip(found, ForkedExecutor(model).run(requests, variants), strict=True):
                compared += len(requests)
                same += sum(a == b for a, b in zip(mine.responses, other.responses, strict=True))
    assert same >= 0.9 * compared, f"{same} of {compared}"
    model = loaded(device, TRAINED, "bfloat16")
    prompts = [r.context_ids for r in _long_texts(model, 16, 200)]
    requests, variants = [GenerateRequest(p, ("\x00",), 128) for p in prompts], [CLEAN, *each_layer(model)]
    for by_graphs in (False, True, False, True):
        executor, start = ForkedExecutor(model, graphs=by_graphs), time.perf_counter()
        list(executor.run(requests, variants))
        torch.cuda.synchronize(device)
        measured[executor.name] = time.perf_counter() - start
    faster = measured["forked"] / measured["forked-graphs"]
    return {
        "equal": same,
        "compared": compared,
        "seconds": measured,
        "times as fast": faster,
    }


@check(120)
def trained_models(device: str) -> Measured:
    """Trained models on the GPU and on the CPU in float32: records with other outcomes, largest difference in nats."""
    measured: Measured = {}
    for name, layers in (("toy-distilled", None), (TRAINED, [0, 9, 20])):
        frames = []
        for on in (device, "cpu"):
            model = loaded(on, name)
            run = lp.sweep(
                model.module, TASKS, PROTOCOLS, each_layer(model, layers=layers), limit=6, shots=0, progress=False
            )
            frames.append(run.records())
        here, there = frames
        assert len(here) == len(there) > 0
        far = float(np.nanmax(np.abs(here["gold_logprob"] - there["gold_logprob"])))
        other = int((here["correct"] != there["correct"]).sum())
        assert other <= 0.01 * len(here), f"{name}: {other} of {len(here)} records"
        assert far < 0.01, f"{name}: {far} nats"
        measured[name] = {"records": len(here), "other_outcomes": other, "largest_difference": far}
    return measured


@check(60)
def gradients_and_weights(device: str) -> Measured:
    """Estimates, integrated gradients on edges and a replacement, on the GPU and on the CPU: relative differences."""

    def estimates(on: str) -> np.ndarray:
        model = loaded(on, "llama")
        requests = [r for r in likelihood_requests(model) if isinstance(r, LoglikelihoodRequest)]
        return np.concatenate([np.ravel(e) for e in estimate_logprobs(model, requests, each_head(model))])

    def edges(on: str) -> np.ndarray:
        return edge_attribution(loaded(on, "llama"), PAIRS).values.numpy()

    def replaced(on: str) -> np.ndarray:
        pair = [loaded(on, "llama", seed=seed).module for seed in (0, 1)]
        run = lp.measure_replacement(*pair, "arithmetic", component="mlp", limit=2, shots=0, progress=False)
        return run.records()["gold_logprob"].to_numpy(float)

    measured: Measured = {}
    for measure in (estimates, edges, replaced):
        here, there = measure(device), measure("cpu")
        measured[measure.__name__] = float(np.abs(here - there).max() / np.abs(there).max())
        assert np.abs(there).max() > 0
        assert measured[measure.__name__] < 1e-3, measured
    return measured


def _long_texts(model: HookedModel, n: int, length: int) -> list[LoglikelihoodRequest]:
    draw = np.random.default_rng(0).integers(5, model.facts.d_vocab - 1, (n, length))
    return [LoglikelihoodRequest(tuple(map(int, row[:-2])), tuple(map(int, row[-2:]))) for row in draw]


@check(60)
def out_of_memory(device: str) -> Measured:
    """A batch that does not fit is halved, and its answers are those of small batches."""
    model = loaded(device, TRAINED, "bfloat16")
    total = torch.cuda.get_device_properties(device).total_memory
    # Tokens whose activations alone take more than the share that is left.
    budget = 2 * limits_for_memory(model.facts, int(SMALL_SHARE * total)).tokens
    requests, variants = _long_texts(model, max(4, budget // 500), 500), [CLEAN, *each_layer(model, layers=[3])]
    expected = list(ForkedExecutor(model, 4096).run(requests, variants))
    executor = ForkedExecutor(model, 4 * budget)
    _free()
    torch.cuda.set_per_process_memory_fraction(SMALL_SHARE, device)
    try:
        found = list(executor.run(requests, variants))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    assert executor.limits.tokens < 4 * budget, "nothing ran out"
    pairs = [
        (a.logprob, b.logprob)
        for mine, other in zip(found, expected, strict=True)
        for a, b in zip(mine.responses, other.responses, strict=True)
    ]
    far = max(abs(a - b) for a, b in pairs)
    assert far < 2 * PROBE_TOLERANCE["bfloat16"], far
    return {"tokens_asked": 4 * budget, "tokens_after": executor.limits.tokens, "largest_difference": far}


def _free() -> None:
    gc.collect()
    torch.cuda.empty_cache()


@check(60)
def memory_within_budget(device: str) -> Measured:
    """What a sweep takes besides the weights, against the amount that was given."""
    model = loaded(device, TRAINED, "bfloat16")
    measured: Measured = {}
    for amount, name in (("1GB", "forked"), ("4GB", "forked"), ("4GB", "forked-graphs")):
        executor = make_executor(name, model, memory=amount)
        requests = [*_long_texts(model, 400, 200)]
        generated = [GenerateRequest(r.context_ids, ("\x00",), 32) for r in requests[:200]]
        _free()
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        list(executor.run([*requests, *generated], [CLEAN, *each_layer(model)[::6]]))
        peak = torch.cuda.max_memory_allocated(device) - before
        measured[f"{amount}, {name}"] = peak
        assert 0 < peak <= float(amount.removesuffix("GB")) * 1e9, (amount, peak)
    return measured


@check(60)
def launches_and_waits(device: str) -> Measured:
    """Launches per layer and decode step, without graphs, and waits of the host per step, in a layer sweep."""
    model = loaded(device, TRAINED, "bfloat16")
    prompts = [r.context_ids for r in _long_texts(model, 16, 60)]
    requests, variants = [GenerateRequest(p, ("\x00",), 6) for p in prompts], [CLEAN, *each_layer(model)]
    executor, launches, waits = ForkedExecutor(model), [], []
    list(executor.run(requests, variants))
    advance = GroupDecoder._advance

    def counted(*args: Any, **kwargs: Any) -> Any:
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with torch.profiler.profile(activities=activities) as profile, warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                result = advance(*args, **kwargs)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        launches.append(sum(e.count for e in profile.key_averages() if "LaunchKernel" in e.key))
        waits.append(sum("synchroniz" in str(w.message) for w in said))
        return result

    with mock.patch.object(GroupDecoder, "_advance", counted):
        list(executor.run(requests, variants))
    per_layer = float(np.median(launches)) / model.facts.n_layers
    assert per_layer > 0
    # Choosing the token waits twice more.
    assert max(waits) <= 2, waits
    return {"launches_per_layer_and_step": per_layer, "waits_per_step": float(np.median(waits)) + 2}


@check(90)
def sweeps(device: str) -> Measured:
    """The README's sweeps: seconds, and records per second."""
    measured: Measured = {}
    for name, tasks, over in (
        ("layers", TASKS, VariantSelection("layers", "skip")),
        ("heads", TASKS[:1], VariantSelection("heads", "zero")),
    ):
        model = loaded(device, TRAINED)
        protocols = PROTOCOLS if name == "layers" else ("default",)
        runs = []
        for _ in range(2):
            start = time.perf_counter()
            run = lp.sweep(model.module, tasks, protocols, over, limit=16, progress=False)
            torch.cuda.synchronize(device)
            runs.append(time.perf_counter() - start)
        measured[name] = {"first": runs[0], "seconds": runs[1], "records_per_second": len(run.records()) / runs[1]}
    return measured
