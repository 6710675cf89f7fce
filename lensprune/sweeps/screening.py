"""Screening: rank all heads by an estimate, and measure only the strongest, with a random control set.

The estimate is attribution patching towards the ablated value (`estimate_logprobs`), for the records' logprob_margin;
under ``generate``, for the log-probability of the clean model's text.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy.stats import rankdata

from lensprune.ablation.reference import ReferenceActivations
from lensprune.ablation.variants import CLEAN, Variant
from lensprune.engine.base import Executor, ProgressCallback
from lensprune.engine.estimates import Slope, estimate_measure
from lensprune.engine.gradient_rules import GRADIENT_RULES
from lensprune.errors import UserError
from lensprune.models.base import HookedModel
from lensprune.protocols import score_items
from lensprune.protocols.registry import protocol_named
from lensprune.protocols.requests import GenerateResponse, LoglikelihoodRequest, LoglikelihoodResponse
from lensprune.runs.spec import SweepSpec
from lensprune.runs.variant_json import variant_to_json
from lensprune.sweeps.cells import reference_of
from lensprune.sweeps.conditions import Condition
from lensprune.sweeps.options import ANY_RULE, check_ranked
from lensprune.sweeps.prepare import SweepJob
from lensprune.terminal import progress_bar

__all__ = [
    "MIN_CONTROLS",
    "best_ranks",
    "choose",
    "estimated_effects",
    "rules_of",
    "screened",
    "screened_controls",
    "screened_count",
    "values_and_estimates",
]

_MARGINS = {ANY_RULE: 2.0}
_MARGIN = 1.5
"""Multiple of the requested number of heads to measure because of their estimates, by rule: the best of three ranks
finds less in the first places and more in all (docs/explanation/estimates.md)."""
_Groups = list[list[LoglikelihoodRequest]]
_STEP = 1e-6
"""Step in nats by which a log-probability is moved for the derivative of a margin."""
MIN_CONTROLS = 8
"""Minimum number of heads drawn at random; otherwise half the requested number."""


def estimated_effects(
    model: HookedModel,
    condition: Condition,
    variants: Sequence[Variant],
    executor: Executor,
    reference: ReferenceActivations | None = None,
    progress: ProgressCallback | None = None,
    *,
    rule: str = "plain",
) -> Float[np.ndarray, " variant"]:
    """Estimated mean change over the items in each variant, in nats; negative: the part was needed.

    Under the likelihood protocols, the change of the margin (log-probability of the right answer over the clean model's
    best other one); under ``generate``, of the log-probability of the clean model's text. Items without a finite number
    are left out.

    Args:
        executor: generates the clean model's texts.
        rule: gradient rule (`lensprune.engine.gradient_rules`).

    Raises:
        UserError: a variant that does not remove exactly one part, a rule that the model does not support, no finite
            number at all, or none for some variant.
    """
    return values_and_estimates(model, condition, variants, executor, reference, progress, rule=rule)[1]


def values_and_estimates(
    model: HookedModel,
    condition: Condition,
    variants: Sequence[Variant],
    executor: Executor,
    reference: ReferenceActivations | None = None,
    progress: ProgressCallback | None = None,
    *,
    rule: str = "plain",
    given: Variant = CLEAN,
) -> tuple[Float[np.ndarray, " item"], Float[np.ndarray, " variant"]]:
    """The measure of `estimated_effects`, item by item (NaN where it is not finite), and the estimates themselves.

    Args:
        given: a variant that is applied first; the items' measure is that of the model with it.
    """
    asked = _asked(condition, executor)
    return _estimated(model, condition, asked, variants, reference, progress, rule=rule, given=given)


def _estimated(
    model: HookedModel,
    condition: Condition,
    asked: tuple[_Groups, Slope],
    variants: Sequence[Variant],
    reference: ReferenceActivations | None,
    progress: ProgressCallback | None,
    *,
    rule: str,
    given: Variant = CLEAN,
) -> tuple[Float[np.ndarray, " item"], Float[np.ndarray, " variant"]]:
    values, total = estimate_measure(
        model, *asked, variants, rule=rule, given=given, reference=reference, progress=progress
    )
    finite = int(np.isfinite(values).sum())
    if not finite:
        raise UserError(
            f"{condition.task.task.name} under {condition.protocol}: "
            "no item gives a finite estimate, so parts can't be ranked"
        )
    changes = total / finite
    if not np.isfinite(changes).all():
        name = variants[int(np.flatnonzero(~np.isfinite(changes))[0])].name
        raise UserError(
            f"{condition.task.task.name} under {condition.protocol}: rule {rule} gives {name} no finite estimate, so "
            f"parts can't be ranked; the model is in {model.facts.dtype}: use float32, or another rule"
        )
    return values, changes


def _asked(condition: Condition, executor: Executor) -> tuple[_Groups, Slope]:
    """What estimates are of: requests, and the measure of each item with its slope."""
    likelihood = protocol_named(condition.protocol).measure == "logprob_margin"
    return (_margins if likelihood else _texts)(condition, executor)


def _margins(condition: Condition, executor: Executor) -> tuple[_Groups, Slope]:
    """Each item's options, and its margin as the protocol scores it."""
    groups = [
        [request for request in item.requests if isinstance(request, LoglikelihoodRequest)] for item in condition.items
    ]

    def margin(i: int, logprobs: Float[np.ndarray, " option"]) -> float:
        responses = [
            LoglikelihoodResponse(float(value), False, len(request.continuation_ids))
            for value, request in zip(logprobs, groups[i], strict=True)
        ]
        [outcome] = score_items(condition.task, condition.protocol, [condition.items[i]], responses)
        return math.nan if outcome.logprob_margin is None else outcome.logprob_margin

    def slope(i: int, logprobs: Float[np.ndarray, " option"]) -> tuple[float, Float[np.ndarray, " option"]]:
        # Margins are linear in log-probabilities, up to which option is the best other one: a small step gives the
        # derivative to rounding.
        value, steps = margin(i, logprobs), _STEP * np.eye(len(logprobs))
        return value, np.array([margin(i, logprobs + step) - margin(i, logprobs - step) for step in steps]) / (
            2 * _STEP
        )

    return groups, slope


def _texts(condition: Condition, executor: Executor) -> tuple[_Groups, Slope]:
    """The clean model's texts, and their log-probabilities."""
    [answered] = executor.run(condition.requests, [CLEAN])
    said = [r.token_ids if isinstance(r, GenerateResponse) else () for r in answered.responses]
    groups = [
        [LoglikelihoodRequest(request.context_ids, tokens)]
        for request, tokens in zip(condition.requests, said, strict=True)
        if tokens
    ]
    return groups, lambda i, logprobs: (float(logprobs[0]), np.ones(1))


def screened(job: SweepJob, executor: Executor, existing: SweepSpec | None, progress: bool = True) -> SweepJob:
    """The same sweep with only the chosen heads to measure, and all estimates in its spec.

    Args:
        existing: spec of the resumed run, whose estimates are reused.

    Raises:
        UserError: a variant that does not remove exactly one head or key/value group, or nothing to rank by.
    """
    options = job.options
    heads = [variant for variant in job.variants if not variant.is_clean]
    kinds = sorted({head.component for head in heads})
    if len(kinds) > 1:
        raise UserError(f"a screened sweep ranks parts of one kind, not {' and '.join(kinds)} together")
    check_ranked(heads[0].ablations[0].component.part)
    fraction = options.screen
    assert fraction is not None
    screen = None if existing is None else existing.screen
    rule = options.screen_rule or "plain"
    wanted = (fraction, rule)
    if screen is None or (screen["fraction"], screen["rule"]) != wanted or not _screens(screen, heads):
        rows = _estimates(job, heads, executor, progress)
        _, why = choose(heads, rows, fraction, options.seed, rule=rule)
        top, reach, _ = _sizes(len(heads), fraction, rule)
        screen = {
            "fraction": fraction,
            "rule": rule,
            "component": heads[0].component,
            "top": top,
            "reach": reach,
            "estimates": rows,
            "measured": why,
        }
    chosen = tuple(v for v in job.variants if v.is_clean or v.name in screen["measured"])
    spec = replace(job.spec, variants=tuple(variant_to_json(v) for v in chosen), screen=screen)
    return replace(job, variants=chosen, spec=spec)


def _screens(screen: Mapping[str, Any], heads: Sequence[Variant]) -> bool:
    """Whether these are the estimated heads, or those chosen from them."""
    names = {head.name for head in heads}
    return names in ({row["variant"] for row in screen["estimates"]}, set(screen["measured"]))


def rules_of(rule: str) -> tuple[str, ...]:
    """The gradient rules that a way to rank needs."""
    return GRADIENT_RULES if rule == ANY_RULE else (rule,)


def best_ranks(estimates: Sequence[Float[np.ndarray, " part"]]) -> Float[np.ndarray, " part"]:
    """Each part's best rank (1: largest estimated loss) in any of the estimates, and between equal ones the mean rank:
    parts with lower numbers come first."""
    ranks = np.array([rankdata(estimate) for estimate in estimates])
    return ranks.min(0) + ranks.mean(0) / ranks.size


def _estimates(job: SweepJob, heads: Sequence[Variant], executor: Executor, progress: bool) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    rules = rules_of(job.options.screen_rule or "plain")
    total = sum(len(condition.requests) for condition in job.conditions) * len(rules)
    with progress_bar(shown=progress, total=total, unit="request") as bar:
        for condition in job.conditions:
            task = condition.task.task.name
            bar.set_description(f"screening {task} {condition.protocol}")
            reference, asked = reference_of(job.model, condition, heads, job.options), _asked(condition, executor)
            by_rule = [
                _estimated(job.model, condition, asked, heads, reference, bar.update, rule=rule)[1] for rule in rules
            ]
            for head, effect, rank in zip(heads, *_ranked(by_rule), strict=True):
                rows.append(
                    {
                        "task": task,
                        "protocol": condition.protocol,
                        "variant": head.name,
                        "layer": head.layer,
                        "head": head.head,
                        "estimate": float(effect),
                        "rank": int(rank),
                    }
                )
    return rows


def _ranked(
    by_rule: Sequence[Float[np.ndarray, " head"]],
) -> tuple[Float[np.ndarray, " head"], Int[np.ndarray, " head"]]:
    """Each head's estimate by the rule that ranks it best, and its place: 1 comes first."""
    best = np.argmin([rankdata(effects) for effects in by_rule], axis=0)
    return np.array(by_rule)[best, np.arange(len(best))], rankdata(best_ranks(by_rule), method="ordinal")


def _sizes(n_heads: int, fraction: float, rule: str) -> tuple[int, int, int]:
    """Number of heads requested in one (task, protocol), of those measured for their estimates, and of controls."""
    size = max(1, math.ceil(fraction * n_heads))
    return size, math.ceil(_MARGINS.get(rule, _MARGIN) * size), max(MIN_CONTROLS, size // 2)


def screened_count(n_heads: int, fraction: float, rule: str = "plain") -> int:
    """How many of `n_heads` heads a screened sweep measures on one task under one protocol."""
    return min(n_heads, sum(_sizes(n_heads, fraction, rule)[1:]))


def screened_controls(n_heads: int, fraction: float, rule: str = "plain") -> int:
    """How many of these are drawn at random."""
    _, strongest, controls = _sizes(n_heads, fraction, rule)
    return min(max(0, n_heads - strongest), controls)


def choose(
    variants: Sequence[Variant],
    estimates: Sequence[Mapping[str, Any]],
    fraction: float,
    seed: int,
    *,
    rule: str = "plain",
) -> tuple[list[Variant], dict[str, str]]:
    """The variants to measure, in their order, and why: ``strongest`` or ``control``.

    The strongest are those that rank first in any (task, protocol): 1.5 times the `fraction` of the variants, or twice
    under ``any``, to allow for estimation error. Controls are drawn from the others.

    Args:
        estimates: rows with ``task``, ``protocol``, ``variant`` and ``rank``.
        rule: the way to rank.
    """
    _, size, most = _sizes(len(variants), fraction, rule)
    frame = pd.DataFrame(estimates)
    strongest: set[str] = set()
    for _, group in frame.groupby(["task", "protocol"], sort=False):
        strongest.update(group.sort_values("rank", kind="stable")["variant"].head(size))
    others = [variant.name for variant in variants if variant.name not in strongest]
    controls = set(random.Random(f"screen {seed}").sample(others, min(len(others), most)))
    chosen = [variant for variant in variants if variant.name in strongest | controls]
    return chosen, {v.name: "strongest" if v.name in strongest else "control" for v in chosen}
