"""Screening: rank all heads by an estimate, and measure only the strongest, with a random control set.

The estimate is attribution patching towards the ablated value (`estimate_logprobs`), of the very thing that a record
calls logprob_margin; under ``generate``, of the log-probability of the clean model's own text.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from lensprune.ablation.reference import ReferenceActivations
from lensprune.ablation.variants import CLEAN, Variant
from lensprune.engine.base import Executor, ProgressCallback
from lensprune.engine.estimates import estimate_logprobs
from lensprune.errors import UserError
from lensprune.models.base import HookedModel
from lensprune.protocols import score_items
from lensprune.protocols.registry import protocol_named
from lensprune.protocols.requests import GenerateResponse, LoglikelihoodRequest, LoglikelihoodResponse
from lensprune.runs.spec import SweepSpec
from lensprune.runs.variant_json import variant_to_json
from lensprune.sweeps.cells import reference_of
from lensprune.sweeps.prepare import Condition, SweepJob
from lensprune.terminal import progress_bar

__all__ = ["MIN_CONTROLS", "choose", "estimated_effects", "screened", "screened_count"]

MARGIN = 1.5
"""Multiple of the requested number of heads that is measured for its estimates."""
MIN_CONTROLS = 8
"""Minimum number of heads drawn at random; otherwise half the requested number."""


def estimated_effects(
    model: HookedModel,
    condition: Condition,
    variants: Sequence[Variant],
    executor: Executor,
    reference: ReferenceActivations | None = None,
    progress: ProgressCallback | None = None,
) -> Float[np.ndarray, " variant"]:
    """Estimated mean change over the items in each variant, in nats; negative: the head was needed.

    Under the likelihood protocols of the margin (log-probability of the right answer over the best other one), under
    ``generate`` of the log-probability of the clean model's text. Items without a finite number are left out.

    Args:
        executor: generates the clean model's texts.

    Raises:
        UserError: a variant that is not the removal of one head or key/value group, or no finite number at all.
    """
    changes = _of_margins if protocol_named(condition.protocol).measure == "logprob_margin" else _of_texts
    effects = changes(model, condition, variants, executor, reference, progress)
    finite = np.isfinite(effects).all(axis=0)
    if not finite.any():
        raise UserError(
            f"{condition.task.task.name} under {condition.protocol}: "
            "no item gives a finite estimate, so heads can't be ranked"
        )
    return effects[:, finite].mean(axis=1)


def _of_margins(
    model: HookedModel,
    condition: Condition,
    variants: Sequence[Variant],
    executor: Executor,
    reference: ReferenceActivations | None,
    progress: ProgressCallback | None,
) -> Float[np.ndarray, "variant item"]:
    requests = [request for request in condition.requests if isinstance(request, LoglikelihoodRequest)]
    clean, changes = estimate_logprobs(model, requests, variants, reference=reference, progress=progress)

    def margins(logprobs: np.ndarray) -> np.ndarray:
        responses = [
            LoglikelihoodResponse(float(value), False, len(request.continuation_ids))
            for value, request in zip(logprobs, requests, strict=True)
        ]
        outcomes = score_items(condition.task, condition.protocol, condition.items, responses)
        return np.array([math.nan if o.logprob_margin is None else o.logprob_margin for o in outcomes])

    before = margins(clean.numpy())
    return np.stack([margins((clean + change).numpy()) - before for change in changes])


def _of_texts(
    model: HookedModel,
    condition: Condition,
    variants: Sequence[Variant],
    executor: Executor,
    reference: ReferenceActivations | None,
    progress: ProgressCallback | None,
) -> Float[np.ndarray, "variant item"]:
    [answered] = executor.run(condition.requests, [CLEAN])
    said = [r.token_ids if isinstance(r, GenerateResponse) else () for r in answered.responses]
    requests = [
        LoglikelihoodRequest(request.context_ids, tokens)
        for request, tokens in zip(condition.requests, said, strict=True)
        if tokens
    ]
    if not requests:
        return np.full((len(variants), 1), math.nan)
    _, changes = estimate_logprobs(model, requests, variants, reference=reference, progress=progress)
    return changes.numpy()


def screened(job: SweepJob, executor: Executor, existing: SweepSpec | None, progress: bool = True) -> SweepJob:
    """The same sweep with only the chosen heads to measure, and all estimates in its spec.

    Args:
        existing: spec of the resumed run, whose estimates are taken over.

    Raises:
        UserError: a variant that is not the removal of one head or key/value group, or nothing to rank by.
    """
    options = job.options
    heads = [variant for variant in job.variants if not variant.is_clean]
    kinds = sorted({head.component for head in heads})
    if len(kinds) > 1:
        raise UserError(f"a screened sweep ranks parts of one kind, not {' and '.join(kinds)} together")
    fraction = options.screen
    assert fraction is not None
    screen = None if existing is None else existing.screen
    if screen is None or screen["fraction"] != fraction or not _screens(screen, heads):
        rows = _estimates(job, heads, executor, progress)
        _, why = choose(heads, rows, fraction, options.seed)
        screen = {
            "fraction": fraction,
            "component": heads[0].component,
            "top": _sizes(len(heads), fraction)[0],
            "reach": _sizes(len(heads), fraction)[1],
            "estimates": rows,
            "measured": why,
        }
    chosen = tuple(v for v in job.variants if v.is_clean or v.name in screen["measured"])
    spec = replace(job.spec, variants=tuple(variant_to_json(v) for v in chosen), screen=screen)
    return replace(job, variants=chosen, spec=spec)


def _screens(screen: Mapping[str, Any], heads: Sequence[Variant]) -> bool:
    """Whether these are the heads that were estimated, or those that were chosen among them."""
    names = {head.name for head in heads}
    return names in ({row["variant"] for row in screen["estimates"]}, set(screen["measured"]))


def _estimates(job: SweepJob, heads: Sequence[Variant], executor: Executor, progress: bool) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    total = sum(len(condition.requests) for condition in job.conditions)
    with progress_bar(shown=progress, total=total, unit="request") as bar:
        for condition in job.conditions:
            task = condition.task.task.name
            bar.set_description(f"screening {task} {condition.protocol}")
            reference = reference_of(job.model, condition, heads, job.options)
            effects = estimated_effects(job.model, condition, heads, executor, reference, bar.update)
            for head, effect in zip(heads, effects, strict=True):
                place = {"layer": head.layer, "head": head.head}
                rows.append(
                    {
                        "task": task,
                        "protocol": condition.protocol,
                        "variant": head.name,
                        **place,
                        "estimate": float(effect),
                    }
                )
    return rows


def _sizes(n_heads: int, fraction: float) -> tuple[int, int, int]:
    """Number of heads requested in one (task, protocol), of those measured for their estimates, and of controls."""
    size = max(1, math.ceil(fraction * n_heads))
    return size, math.ceil(MARGIN * size), max(MIN_CONTROLS, size // 2)


def screened_count(n_heads: int, fraction: float) -> int:
    """How many of `n_heads` heads a screened sweep measures on one task under one protocol."""
    return min(n_heads, sum(_sizes(n_heads, fraction)[1:]))


def choose(
    variants: Sequence[Variant], estimates: Sequence[Mapping[str, Any]], fraction: float, seed: int
) -> tuple[list[Variant], dict[str, str]]:
    """The variants to measure, in their order, and why: ``strongest`` or ``control``.

    Strongest are `MARGIN` times the `fraction` of the variants with the largest estimated loss in any (task, protocol):
    estimates are least accurate where they decide. Controls are drawn from the others.

    Args:
        estimates: rows with ``task``, ``protocol``, ``variant`` and ``estimate``.
    """
    _, size, most = _sizes(len(variants), fraction)
    frame = pd.DataFrame(estimates)
    strongest: set[str] = set()
    for _, group in frame.groupby(["task", "protocol"], sort=False):
        strongest.update(group.sort_values("estimate", kind="stable")["variant"].head(size))
    others = [variant.name for variant in variants if variant.name not in strongest]
    controls = set(random.Random(f"screen {seed}").sample(others, min(len(others), most)))
    chosen = [variant for variant in variants if variant.name in strongest | controls]
    return chosen, {v.name: "strongest" if v.name in strongest else "control" for v in chosen}
