"""Measure the cells of one (task, protocol): run requests under variants, score answers, make records."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from lensprune.ablation.collect import collect_reference
from lensprune.ablation.reference import ReferenceActivations
from lensprune.ablation.variants import Variant
from lensprune.engine.base import Executor
from lensprune.errors import LensPruneError
from lensprune.models.base import HookedModel
from lensprune.protocols import score_items
from lensprune.protocols.base import Outcome
from lensprune.runs.answers import AnswerLog
from lensprune.runs.records import CellKey, cell_table
from lensprune.sweeps.answering import AnswerProgress, answers_of
from lensprune.sweeps.conditions import Condition
from lensprune.sweeps.options import SweepOptions
from lensprune.sweeps.prepare import SweepJob

__all__ = ["measure_cells", "reference_of", "warn_of_cut_off", "warn_of_one_answer"]

logger = logging.getLogger("lensprune")

MAX_CUT_OFF = 0.1
FEWEST_ANSWERS = 4
"""With fewer answers, it is not informative that half of them are equal."""


def measure_cells(
    job: SweepJob,
    condition: Condition,
    variants: Sequence[Variant],
    executor: Executor,
    progress: AnswerProgress,
    log: AnswerLog | None = None,
) -> Iterator[tuple[CellKey, pa.Table]]:
    """Yield the records of each variant on one (task, protocol), as soon as they are measured.

    Args:
        log: stores answers of unfinished variants; stored answers are not requested again.

    Raises:
        LensPruneError: the executor left a variant out.
        UserError, HookNeverFired: as the executor.
    """
    task = condition.task.task.name
    waiting = {variant.name for variant in variants}

    def reference(chosen: Sequence[Variant]) -> ReferenceActivations | None:
        return reference_of(job.model, condition, chosen, job.options)

    answers = answers_of(condition.requests, variants, executor, progress, log, every=job.variants, reference=reference)
    for answered in answers:
        outcomes = score_items(condition.task, condition.protocol, condition.items, answered.responses)
        if answered.variant.is_clean and condition.generates:
            warn_of_one_answer(task, condition.protocol, outcomes)
            warn_of_cut_off(task, condition.protocol, outcomes, condition.generation["max_new_tokens"])
        key = CellKey(answered.variant.name, task, condition.protocol)
        yield key, cell_table(key, answered.variant, outcomes, condition.items, condition.chances)
        waiting.discard(answered.variant.name)
    if waiting:
        raise LensPruneError(f"executor {executor.name} gave no answer for {', '.join(sorted(waiting))} on {task}")


def warn_of_cut_off(task: str, protocol: str, outcomes: Sequence[Outcome], max_new_tokens: int) -> None:
    """Warn where more than a tenth of a whole model's answers are cut off, and say what helps.

    A text may run out of new tokens, or end by itself inside its thinking, which more new tokens don't fix.
    """
    cut = [outcome for outcome in outcomes if outcome.failure == "cut_off"]
    if len(cut) <= MAX_CUT_OFF * len(outcomes):
        return
    short = sum(outcome.stop_reason == "length" for outcome in cut)
    ended = len(cut) - short
    said = []
    if short:
        said.append(
            f"{short} of {len(outcomes)} texts of the whole model were cut off after {max_new_tokens} new tokens and "
            "hold no answer: raise --max-new-tokens"
        )
    if ended:
        said.append(
            f"{ended} of {len(outcomes)} texts of the whole model ended inside their thinking and hold no answer: more "
            "new tokens won't help; see whether --think-tokens name this model's markers"
        )
    logger.warning(f"task {task!r}, {protocol}: {'; '.join(said)}")


def warn_of_one_answer(task: str, protocol: str, outcomes: Sequence[Outcome]) -> None:
    """Warn if more than half of the clean model's answers are extracted as the same string, which is seldom right.

    This happens with a filter that takes the first word of a sentence ("The").
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
        f"and right in {right}: read the texts, since the filter may not suit how this model answers "
        f"({', '.join(f'{name} {mean:.3f}' for name, mean in sorted(metrics.items()))})"
    )


def reference_of(
    model: HookedModel, condition: Condition, variants: Sequence[Variant], options: SweepOptions
) -> ReferenceActivations | None:
    """Reference activations for the variants, from the reference prompts of `condition`; ``None`` if none are
    needed."""
    wanting = [variant for variant in variants if variant.needs_reference]
    if not wanting:
        return None
    mode: Any = options.mean_mode
    return collect_reference(model, condition.reference_prompts, wanting, mode=mode, donor_seed=options.seed)
