"""Measuring the cells of one (task, protocol): requests under variants, answers scored, records made."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence

import pyarrow as pa

from lensprune.ablation.collect import collect_reference
from lensprune.ablation.reference import ReferenceActivations
from lensprune.ablation.variants import Variant
from lensprune.engine.base import Executor, ProgressCallback
from lensprune.errors import LensPruneError
from lensprune.protocols import score_items
from lensprune.protocols.base import Outcome
from lensprune.runs.records import CellKey, cell_table
from lensprune.sweeps.prepare import Asked, Prepared

__all__ = ["measure_cells", "reference_of", "warn_of_one_answer"]

logger = logging.getLogger("lensprune")

FEWEST_ANSWERS = 4
"""With fewer answers, half of them being the same says nothing."""


def measure_cells(
    prepared: Prepared, asked: Asked, variants: Sequence[Variant], executor: Executor, progress: ProgressCallback
) -> Iterator[tuple[CellKey, pa.Table]]:
    """Yield the records of each variant on one (task, protocol), as soon as they are there.

    Raises:
        LensPruneError: the executor left a variant out.
        UserError, HookNeverFired: as the executor.
    """
    task = asked.task.task.name
    waiting = {variant.name for variant in variants}
    reference = reference_of(prepared, asked, variants)
    for answered in executor.run(asked.requests, variants, reference=reference, progress=progress):
        outcomes = score_items(asked.task, asked.protocol, asked.items, answered.responses)
        if answered.variant.is_clean and asked.generates:
            warn_of_one_answer(task, asked.protocol, outcomes)
        key = CellKey(answered.variant.name, task, asked.protocol)
        yield key, cell_table(key, answered.variant, outcomes, asked.items, asked.chances)
        waiting.discard(answered.variant.name)
    if waiting:
        raise LensPruneError(f"executor {executor.name} gave no answer for {', '.join(sorted(waiting))} on {task}")


def warn_of_one_answer(task: str, protocol: str, outcomes: Sequence[Outcome]) -> None:
    """Warn where more than half of the clean model's answers are extracted as one string that seldom is the right one.

    A filter that takes the first word of a sentence ("The") does that.
    """
    found = Counter(outcome.prediction for outcome in outcomes if outcome.prediction is not None)
    if len(outcomes) < FEWEST_ANSWERS or not found:
        return
    answer, count = found.most_common(1)[0]
    right = sum(outcome.correct for outcome in outcomes if outcome.prediction == answer)
    if count <= len(outcomes) / 2 or right > count / 2:
        return
    metrics = {name: sum(o.metrics[name] for o in outcomes) / len(outcomes) for name in outcomes[0].metrics}
    logger.warning(
        f"task {task!r}, {protocol}: {answer!r} is extracted from {count} of the clean model's {len(outcomes)} answers "
        f"and right in {right}: read their texts, the filter may not fit how this model answers "
        f"({', '.join(f'{name} {mean:.3f}' for name, mean in sorted(metrics.items()))})"
    )


def reference_of(prepared: Prepared, asked: Asked, variants: Sequence[Variant]) -> ReferenceActivations | None:
    """What the variants that need a reference take from this (task, protocol)'s reference prompts."""
    wanting = [variant for variant in variants if variant.needs_reference]
    if not wanting:
        return None
    options = prepared.options
    where = f"{options.reference}: {len(asked.reference_prompts)} prompts"
    return collect_reference(
        prepared.model,
        asked.reference_prompts,
        wanting,
        mode=options.mean_mode,  # type: ignore[arg-type]
        donor_seed=options.seed,
        description=where,
    )
