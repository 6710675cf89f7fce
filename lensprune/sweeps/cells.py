"""Measuring the cells of one (task, protocol): requests under variants, answers scored, records made."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from lensprune.ablation.collect import collect_reference
from lensprune.ablation.reference import ReferenceActivations
from lensprune.ablation.variants import Variant
from lensprune.engine.base import Executor, ProgressCallback
from lensprune.errors import LensPruneError
from lensprune.models.base import HookedModel
from lensprune.protocols import score_items
from lensprune.protocols.base import Outcome
from lensprune.runs.records import CellKey, cell_table
from lensprune.sweeps.options import SweepOptions
from lensprune.sweeps.prepare import Condition, SweepJob

__all__ = ["measure_cells", "reference_of", "warn_of_one_answer"]

logger = logging.getLogger("lensprune")

FEWEST_ANSWERS = 4
"""With fewer answers, half of them being equal means nothing."""


def measure_cells(
    job: SweepJob, condition: Condition, variants: Sequence[Variant], executor: Executor, progress: ProgressCallback
) -> Iterator[tuple[CellKey, pa.Table]]:
    """Yield the records of each variant on one (task, protocol), as soon as they are measured.

    Raises:
        LensPruneError: the executor left a variant out.
        UserError, HookNeverFired: as the executor.
    """
    task = condition.task.task.name
    waiting = {variant.name for variant in variants}
    reference = reference_of(job.model, condition, variants, job.options)
    for answered in executor.run(condition.requests, variants, reference=reference, progress=progress):
        outcomes = score_items(condition.task, condition.protocol, condition.items, answered.responses)
        if answered.variant.is_clean and condition.generates:
            warn_of_one_answer(task, condition.protocol, outcomes)
        key = CellKey(answered.variant.name, task, condition.protocol)
        yield key, cell_table(key, answered.variant, outcomes, condition.items, condition.chances)
        waiting.discard(answered.variant.name)
    if waiting:
        raise LensPruneError(f"executor {executor.name} gave no answer for {', '.join(sorted(waiting))} on {task}")


def warn_of_one_answer(task: str, protocol: str, outcomes: Sequence[Outcome]) -> None:
    """Warn where more than half of the clean model's answers are extracted as one string that is seldom right.

    A filter that takes the first word of a sentence ("The") does that.
    """
    counts = Counter(outcome.prediction for outcome in outcomes if outcome.prediction is not None)
    if len(outcomes) < FEWEST_ANSWERS or not counts:
        return
    answer, count = counts.most_common(1)[0]
    right = sum(outcome.correct for outcome in outcomes if outcome.prediction == answer)
    if count <= len(outcomes) / 2 or right > count / 2:
        return
    metrics = {name: sum(o.metrics[name] for o in outcomes) / len(outcomes) for name in outcomes[0].metrics}
    logger.warning(
        f"task {task!r}, {protocol}: {answer!r} is extracted from {count} of the clean model's {len(outcomes)} answers "
        f"and right in {right}: read their texts, the filter may not fit how this model answers "
        f"({', '.join(f'{name} {mean:.3f}' for name, mean in sorted(metrics.items()))})"
    )


def reference_of(
    model: HookedModel, condition: Condition, variants: Sequence[Variant], options: SweepOptions
) -> ReferenceActivations | None:
    """What the variants that need a reference take from the reference prompts of `condition`; ``None`` without any."""
    wanting = [variant for variant in variants if variant.needs_reference]
    if not wanting:
        return None
    mode: Any = options.mean_mode
    return collect_reference(model, condition.reference_prompts, wanting, mode=mode, donor_seed=options.seed)
