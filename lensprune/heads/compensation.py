"""Redundancy of heads: removing two heads together against removing each alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Unpack, cast

import numpy as np
import pandas as pd

from lensprune.ablation.components import Head
from lensprune.ablation.variants import CLEAN, Ablation, Variant
from lensprune.analysis.head_effects import MEASURES
from lensprune.analysis.intervals import mean_intervals
from lensprune.engine.registry import make_executor
from lensprune.errors import UserError, unknown_name
from lensprune.models.adapt import as_hooked_model
from lensprune.models.base import AnyModel
from lensprune.protocols.registry import protocol_named
from lensprune.results.run import Run
from lensprune.sweeps.cells import reference_of
from lensprune.sweeps.conditions import Condition
from lensprune.sweeps.options import JobArguments, SweepArguments, SweepOptions
from lensprune.sweeps.prepare import prepare
from lensprune.sweeps.run import sweep
from lensprune.sweeps.screening import values_and_estimates

__all__ = ["Compensation", "estimated_compensation", "pairwise_compensation"]

MAX_HEADS = 40


@dataclass(frozen=True)
class Compensation:
    """The run of single heads and pairs, and its table.

    `table`: one row per (task, protocol, pair): ``layer_a``, ``head_a``, ``layer_b``, ``head_b``, ``effect_a``,
    ``effect_b``, ``effect_both`` (mean changes of the measure; negative: needed), ``interaction`` = effect_both −
    effect_a − effect_b with its 95% interval ``ci_low``, ``ci_high`` (NaN if a measure in nats has the same interaction
    on every item). Negative: redundant (super-additive), each compensates for the other's loss; positive: serial
    (sub-additive), the heads do one job that is lost with either.
    """

    table: pd.DataFrame
    run: Run


def pairwise_compensation(
    model: AnyModel,
    heads: Sequence[tuple[int, int]],
    tasks: Sequence[str] | str,
    protocols: Sequence[str] | str = ("default",),
    *,
    measure: str | None = None,
    ablation: str = "zero",
    seed: int = 0,
    **options: Unpack[SweepArguments],
) -> Compensation:
    """Remove every head and every pair of heads, and measure each pair's loss beyond the sum of its heads' losses.

    Args:
        heads: (layer, head) pairs, such as the strongest of a sweep or of `importance_of`.
        measure: ``correct``, ``gold_logprob`` or ``logprob_margin``; ``None`` takes the margin, or ``correct`` under
            ``generate``.
        options: options of `lensprune.sweep` (limit, shots, seed, out, …).

    Raises:
        UserError: fewer than two heads, one given twice, more than 40, or a measure that the protocol lacks.
    """
    chosen = _chosen(heads)
    if measure is not None and measure not in MEASURES:
        raise unknown_name("measure", measure, MEASURES)
    hooked = as_hooked_model(model)
    removed = [*((head,) for head in chosen), *combinations(chosen, 2)]
    run = sweep(hooked, tasks, protocols, [_variant(subset, ablation) for subset in removed], seed=seed, **options)
    tables = [_table(run, task, protocol, chosen, measure, ablation) for task, protocol in run.conditions]
    return Compensation(pd.concat(tables, ignore_index=True), run)


def estimated_compensation(
    model: AnyModel,
    heads: Sequence[tuple[int, int]],
    tasks: Sequence[str] | str,
    protocols: Sequence[str] | str = ("default",),
    *,
    ablation: str = "zero",
    rule: str = "plain",
    seed: int = 0,
    **options: Unpack[JobArguments],
) -> pd.DataFrame:
    """Estimate `pairwise_compensation` with one forward and backward pass per removed head instead of a run per pair:
    each pass measures the loss without the head, and estimates the loss from removing another one as well.

    The interaction is taken from the pass without the earlier head, so that later heads' reaction to its removal is
    measured, and only the removal of the later head is estimated; within one layer it is the mean of both.

    Args:
        heads, ablation, options: as `pairwise_compensation`, without a folder for a run.
        rule: of the gradient (`lensprune.engine.gradient_rules`).

    Returns:
        One row per (task, protocol, pair): ``layer_a``, ``head_a``, ``layer_b``, ``head_b``, ``effect_a`` and
        ``effect_b`` (measured mean change, nats; under ``generate`` of the clean text's log-probability),
        ``a_without_b`` and ``b_without_a`` (estimated effect of removing one head after the other) and ``interaction``:
        the difference from removing that head alone; negative: the heads are redundant.

    Raises:
        UserError: as `pairwise_compensation`, or a rule that the model does not support.
    """
    chosen = _chosen(heads)
    hooked = as_hooked_model(model)
    variants = [_variant((head,), ablation) for head in chosen]
    job = prepare(hooked, SweepOptions.given(tasks, protocols, variants, seed=seed, **options))
    executor = make_executor(job.options.executor, hooked)
    rows = []
    for condition in job.conditions:
        reference = reference_of(hooked, condition, variants, job.options)

        def run(
            given: Variant, condition: Condition = condition, reference: Any = reference
        ) -> tuple[np.ndarray, np.ndarray]:
            return values_and_estimates(hooked, condition, variants, executor, reference, rule=rule, given=given)

        (whole, _), without = run(CLEAN), [run(variant) for variant in variants]
        alone = [float(np.nanmean(values - whole)) for values, _ in without]
        for a, b in combinations(range(len(chosen)), 2):
            after_b, after_a = float(without[b][1][a]), float(without[a][1][b])
            more = {chosen[a].layer: after_b - alone[a], chosen[b].layer: after_a - alone[b]}
            if len(more) == 1:
                more = {chosen[a].layer: (after_b - alone[a] + after_a - alone[b]) / 2}
            rows.append(
                {
                    "task": condition.task.task.name,
                    "protocol": condition.protocol,
                    "layer_a": chosen[a].layer,
                    "head_a": chosen[a].head,
                    "layer_b": chosen[b].layer,
                    "head_b": chosen[b].head,
                    "effect_a": alone[a],
                    "effect_b": alone[b],
                    "a_without_b": after_b,
                    "b_without_a": after_a,
                    "interaction": more[max(more)],
                }
            )
    return pd.DataFrame(rows)


def _chosen(heads: Sequence[tuple[int, int]]) -> list[Head]:
    chosen = [Head(int(layer), int(head)) for layer, head in heads]
    if len(chosen) < 2:
        raise UserError(f"compensation needs two or more heads, not {len(chosen)}")
    if len(set(chosen)) < len(chosen):
        twice = next(head for head in chosen if chosen.count(head) > 1)
        raise UserError(f"head {twice.label} is given twice")
    if len(chosen) > MAX_HEADS:
        raise UserError(
            f"{len(chosen)} heads have {len(chosen) * (len(chosen) - 1) // 2} pairs: give {MAX_HEADS} or fewer"
        )
    return chosen


def _variant(heads: tuple[Head, ...], kind: str) -> Variant:
    return Variant(f"{'+'.join(head.label for head in heads)}.{kind}", tuple(Ablation(head, kind) for head in heads))


def _table(run: Run, task: str, protocol: str, heads: Sequence[Head], measure: str | None, kind: str) -> pd.DataFrame:
    column = measure or protocol_named(protocol).measure
    records = run.records(task=task, protocol=protocol)
    # Samples of one item count as their mean.
    measured = records.astype({column: float}).groupby(["item_id", "variant"], sort=False)[column].mean(skipna=False)
    wide: pd.DataFrame = measured.unstack("variant")
    changes = wide.drop(columns=CLEAN.name).sub(wide[CLEAN.name], axis=0)
    changes = changes.loc[np.isfinite(changes.to_numpy()).all(axis=1)]
    if changes.empty:
        raise UserError(f"{protocol} has no finite {column} on {task}: use measure 'correct'")

    def of(*removed: Head) -> np.ndarray:
        return changes[_variant(removed, kind).name].to_numpy()

    pairs = list(combinations(heads, 2))
    extra = np.stack([of(a, b) - of(a) - of(b) for a, b in pairs], axis=1)
    clusters = records.drop_duplicates("item_id").set_index("item_id")["cluster"].reindex(changes.index)
    known = cast(np.ndarray, pd.factorize(clusters)[0]) if clusters.notna().all() else None
    # A right answer loses at most 1 to the pair and at least −2 to its heads together; a wrong one the other way round.
    intervals = mean_intervals(extra, known, bounds=(-2, 2) if column == "correct" else None)
    frame = pd.DataFrame(
        [(a.layer, a.head, b.layer, b.head, of(a).mean(), of(b).mean(), of(a, b).mean()) for a, b in pairs],
        columns=["layer_a", "head_a", "layer_b", "head_b", "effect_a", "effect_b", "effect_both"],
    )
    frame["interaction"], frame["ci_low"], frame["ci_high"] = intervals.delta, intervals.low, intervals.high
    frame.insert(0, "task", task)
    frame.insert(1, "protocol", protocol)
    frame.insert(2, "measure", column)
    return frame
