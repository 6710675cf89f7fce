"""Estimates by each rule beside what a sweep measures: rank correlation, and how many parts have to be measured."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import spearmanr

import lensprune as lp
from lensprune.ablation.enumeration import each_head, each_layer, each_mlp
from lensprune.ablation.variants import Variant
from lensprune.engine.gradient_rules import GRADIENT_RULES
from lensprune.engine.registry import make_executor
from lensprune.models import as_hooked_model
from lensprune.sweeps.options import ANY_RULE, SweepOptions
from lensprune.sweeps.prepare import prepare
from lensprune.sweeps.screening import best_ranks, estimated_effects

__all__ = ["SETTINGS", "Setting", "removal_rows"]

OVER = {"heads": each_head, "mlp": each_mlp, "layers": each_layer}
HEADER = [
    "model, task",
    "parts",
    "rule",
    "ρ with margin",
    "ρ with Δμ",
    "tenth",
    "× 1.5",
    "× 2",
    "× 3",
    "for 0.9",
    "cost",
]


@dataclass(frozen=True)
class Setting:
    """One sweep: all parts of one sort removed, one by one, on the first items of a task."""

    model: str
    task: str
    protocol: str
    limit: int
    shots: int
    over: str


CHAINS, SUMS, PAIRS = (
    "arithmetic[operands=3,largest=9,subtract=True]",
    "arithmetic",
    "kv_retrieval[pairs=4,ending=reopened,answer=text]",
)
SETTINGS = tuple(
    Setting(model, task, "continuation", limit, shots, over)
    for model, task, limit, shots, parts in (
        ("smollm2-135m", "facts", 12, 0, tuple(OVER)),
        ("smollm2-135m", SUMS, 8, 2, tuple(OVER)),
        ("smollm2-135m", PAIRS, 6, 0, tuple(OVER)),
        ("toy-distilled", CHAINS, 40, 2, tuple(OVER)),
        ("toy-distilled", PAIRS, 40, 2, tuple(OVER)),
        ("toy-base", CHAINS, 40, 2, tuple(OVER)),
    )
    for over in parts
)


def removal_rows(settings: Sequence[Setting]) -> Iterator[list[str]]:
    """A header, then one row per setting and rule, and one for the three rules together (`best_ranks`).

    ``ρ``: Spearman's, of estimated and measured change of the margin, and with Δμ. ``tenth`` … ``× 3``: share found of
    the tenth of the parts whose removal costs most margin when as many, or 1.5, 2 and 3 times as many, of the largest
    estimated losses are measured. ``for 0.9``: parts to measure until nine in ten of that tenth are found. ``cost``:
    processor time of the estimates over that of the sweep.
    """
    yield HEADER
    models: dict[str, Any] = {}
    for setting in settings:
        model = models.setdefault(setting.model, as_hooked_model(lp.load_model(setting.model)))
        variants = OVER[setting.over](model)
        options: dict[str, Any] = {"limit": setting.limit, "shots": setting.shots}
        started = time.process_time()
        run = lp.sweep(model, setting.task, setting.protocol, variants, progress=False, **options)
        exact = time.process_time() - started
        margins, accuracies = (
            run.effects(measure=measure, component=variants[0].component)[0].effects
            for measure in ("logprob_margin", "correct")
        )
        estimates: dict[str, np.ndarray] = {}
        costs: list[float] = []
        for rule in GRADIENT_RULES:
            started = time.process_time()
            estimates[rule] = _estimates(model, setting, variants, options, rule)
            costs.append((time.process_time() - started) / exact)
        estimates[ANY_RULE] = best_ranks(list(estimates.values()))
        for (rule, estimate), cost in zip(estimates.items(), [*costs, sum(costs)], strict=True):
            yield [
                f"{setting.model}, `{setting.task}`" if rule == "plain" else "",
                f"{len(variants)} {setting.over}",
                rule,
                *figures_of(estimate, margins, accuracies),
                f"{cost:.3f}",
            ]


def figures_of(estimates: np.ndarray, margins: np.ndarray, accuracies: np.ndarray) -> list[str]:
    """The columns of a row from ``ρ with margin`` to ``for 0.9``."""
    return [
        _correlation(estimates, margins),
        _correlation(estimates, accuracies),
        *(f"{found_share(estimates, margins, factor):.2f}" for factor in (1, 1.5, 2, 3)),
        str(measured_for(estimates, margins, 0.9)),
    ]


def _estimates(
    model: Any, setting: Setting, variants: Sequence[Variant], options: dict[str, Any], rule: str
) -> np.ndarray:
    job = prepare(model, SweepOptions.given(setting.task, setting.protocol, variants, **options))
    [condition] = job.conditions
    return estimated_effects(model, condition, variants, make_executor("forked", model), rule=rule)


def _correlation(a: np.ndarray, b: np.ndarray) -> str:
    return "-" if np.ptp(a) == 0 or np.ptp(b) == 0 else f"{spearmanr(a, b)[0]:.2f}"


def strongest(effects: np.ndarray) -> set[int]:
    """The tenth of the parts that lose most."""
    return set(np.argsort(effects, kind="stable")[: math.ceil(0.1 * len(effects))].tolist())


def found_share(estimates: np.ndarray, effects: np.ndarray, factor: float) -> float:
    """Share of the strongest tenth among `factor` times as many of the largest estimated losses."""
    sought = strongest(effects)
    first = np.argsort(estimates, kind="stable")[: math.ceil(factor * len(sought))]
    return len(sought & set(first.tolist())) / len(sought)


def measured_for(estimates: np.ndarray, effects: np.ndarray, recall: float) -> int:
    """How many of the largest estimated losses hold a share `recall` of the strongest tenth."""
    sought = strongest(effects)
    found = np.cumsum([i in sought for i in np.argsort(estimates, kind="stable").tolist()])
    return int(np.argmax(found >= recall * len(sought))) + 1
