"""lensprune's side of a benchmark, and its hooked executor as a peer where lm-eval has no such task."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from scipy.stats import rankdata

from lensprune.costs.shape import ModelShape, model_shape
from lensprune.costs.shared import shared_cost
from lensprune.costs.speed import measure_speed
from lensprune.costs.unshared import unshared_cost
from lensprune.engine import HookedExecutor, make_executor
from lensprune.engine.base import Executor
from lensprune.models import as_hooked_model, load_model
from lensprune.models.base import ModelFacts
from lensprune.models.model_config import load_model_config
from lensprune.protocols import build_requests, score_items
from lensprune.sweeps.conditions import Condition
from lensprune.sweeps.screening import choose, estimated_effects
from lensprune.tasks.base import GenerationFormat, LoadedTask
from lensprune.tasks.loading import load_task
from lensprune.tasks.registry import get_task
from tests.benchmarks.random_weights import has_no_weights, random_bridge
from tests.benchmarks.stopwatch import Stopwatch, Times
from tests.benchmarks.works import Setting, Work, variants_of

__all__ = ["HookedSide", "Metrics", "OurSide", "ScreenedSide"]

Metrics = list[dict[str, float]]
"""One item's metrics after another, by lm-eval's names."""


class OurSide:
    """The whole sweep at once: requests built from strings, all variants run, all items scored."""

    def __init__(self, work: Work, setting: Setting, data_dir: Path) -> None:
        self._work, self._name = work, setting.model
        if has_no_weights(setting.model):
            loaded = random_bridge(setting.model, setting.dtype, setting.device)
        else:
            loaded = load_model(setting.model, device=setting.device, dtype=setting.dtype, self_check=False)
        self._model = as_hooked_model(loaded)
        self._task = _loaded(work, data_dir)
        self._variants = variants_of(work, self._model)
        self._executor: Executor = make_executor("forked", self._model)
        self.facts = {
            "items": len(self._task.items),
            "variants": len(self._variants),
        }

    def work_done(self) -> dict[str, float]:
        """Tokens and FLOPs of the whole sweep with sharing and without, and FLOPs of a second of products: of a GPU's
        time, or of a processor's.

        What is shared is what an exact sweep can share, so the quotient of the two FLOPs bounds the gain.
        """
        shape = model_shape(load_model_config(self._name))
        items = build_requests(self._model, self._task, self._work.protocol)
        requests = [request for item in items for request in item.requests]
        shared = shared_cost(shape, self._model.facts, requests, self._variants, None)
        unshared = unshared_cost(shape, requests, len(self._variants), None)
        return {
            "shared_tokens": shared.tokens,
            "shared_flops": shared.flops,
            "unshared_tokens": unshared.tokens,
            "unshared_flops": unshared.flops,
            "matmul_flops": _matmul_rate(shape, self._model.facts),
        }

    def sample(self) -> list[str]:
        """Every `our_step`-th component, from the middle of the first step on: their mean depth is that of all."""
        return [v.name for v in self._variants[1:][self._work.our_step // 2 :: self._work.our_step]]

    def run(self, names: list[str] | None = None) -> tuple[Times, dict[str, Metrics]]:
        """Times, and each variant's metrics; `names` restricts the variants."""
        watch = Stopwatch()
        items = build_requests(self._model, self._task, self._work.protocol)
        requests = [request for item in items for request in item.requests]
        variants = [v for v in self._variants if names is None or v.name in names]
        found = {}
        for answered in self._executor.run(requests, variants):
            outcomes = score_items(self._task, self._work.protocol, items, answered.responses)
            found[answered.variant.name] = [dict(outcome.metrics) for outcome in outcomes]
        return watch.read(), found


class ScreenedSide(OurSide):
    """All heads estimated, the strongest and a random control set measured."""

    def run(self, names: list[str] | None = None) -> tuple[Times, dict[str, Metrics]]:
        """Times of estimates and measurements, and the metrics of what is measured."""
        if names is not None:
            return super().run(names)
        watch = Stopwatch()
        self._measured = self._chosen()
        _, found = super().run(["clean", *self._measured])
        return watch.read(), found

    def recall(self) -> float:
        """Share found of the heads that lose most of the margin in a sweep over all of them."""
        items = build_requests(self._model, self._task, self._work.protocol)
        requests = [request for item in items for request in item.requests]
        margins = {}
        for answered in self._executor.run(requests, self._variants):
            outcomes = score_items(self._task, self._work.protocol, items, answered.responses)
            margins[answered.variant.name] = sum(outcome.logprob_margin or 0.0 for outcome in outcomes)
        heads = sorted((name for name in margins if name != "clean"), key=lambda name: margins[name])
        top = heads[: math.ceil((self._work.screen or 0) * len(heads))]
        return len(set(top) & set(self._measured)) / len(top)

    def _chosen(self) -> list[str]:
        items = tuple(build_requests(self._model, self._task, self._work.protocol))
        condition = Condition(self._task, self._work.protocol, items, ())
        heads = self._variants[1:]
        effects = estimated_effects(self._model, condition, heads, self._executor)
        rows = [
            {"task": "", "protocol": "", "variant": head.name, "rank": rank}
            for head, rank in zip(heads, rankdata(effects, method="ordinal"), strict=True)
        ]
        assert self._work.screen is not None
        return [head.name for head in choose(heads, rows, self._work.screen, seed=0)[0]]


class HookedSide(OurSide):
    """The same sweep through TransformerLens hooks, one variant at a time."""

    def __init__(self, work: Work, setting: Setting, data_dir: Path) -> None:
        super().__init__(work, setting, data_dir)
        self._executor = HookedExecutor(self._model)

    def choose_batch_size(self) -> int | None:
        """It has a token budget instead."""
        return None


def _matmul_rate(shape: ModelShape, facts: ModelFacts) -> float:
    if torch.device(facts.device).type == "cuda":
        return measure_speed(shape, getattr(torch, facts.dtype), str(facts.device)).flops
    width = facts.d_model
    left, right = torch.randn(512, width), torch.randn(4 * width, width)
    rates = []
    # A second at a time, since the machine's speed varies.
    for _ in range(7):
        watch, count = Stopwatch(), 0
        while watch.read().cpu < 1:
            torch.nn.functional.linear(left, right)
            count += 1
        rates.append(count * 2 * 512 * 4 * width * width / watch.read().cpu)
    return median(rates)


def _loaded(work: Work, data_dir: Path) -> LoadedTask:
    task = get_task(work.task)
    if work.max_new_tokens is not None:
        fmt: Any = task.formats[work.protocol]
        assert isinstance(fmt, GenerationFormat)
        task = replace(task, formats={**task.formats, work.protocol: replace(fmt, max_new_tokens=work.max_new_tokens)})
    limit = None if work.subjects else work.limit
    loaded = load_task(task, data_dir=data_dir, limit=limit, items="first", shots=work.shots)
    if not work.subjects:
        return loaded
    by_subject = [[i for i in loaded.items if i.cluster == subject][: work.limit] for subject in work.subjects]
    return replace(loaded, items=tuple(item for items in by_subject for item in items))
