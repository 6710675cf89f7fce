"""Measure the cells of one (task, protocol): run requests under variants, score answers, make records."""

from __future__ import annotations

import inspect
import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import pyarrow as pa

from lensprune.ablation.collect import collect_reference
from lensprune.ablation.reference import ReferenceActivations
from lensprune.ablation.variants import Variant
from lensprune.engine.base import Executor, VariantResponses
from lensprune.engine.decoding import Checkpoint
from lensprune.errors import LensPruneError
from lensprune.models.base import HookedModel
from lensprune.protocols import score_items
from lensprune.protocols.base import Outcome
from lensprune.protocols.requests import Response
from lensprune.runs.answers import AnswerLog
from lensprune.runs.records import CellKey, cell_table
from lensprune.sweeps.conditions import Condition
from lensprune.sweeps.options import SweepOptions
from lensprune.sweeps.prepare import SweepJob

__all__ = ["CellProgress", "measure_cells", "reference_of", "warn_of_cut_off", "warn_of_one_answer"]

logger = logging.getLogger("lensprune")

MAX_CUT_OFF = 0.1
FEWEST_ANSWERS = 4
"""With fewer answers, it is not informative that half of them are equal."""


class CellProgress(Protocol):
    """Called with a variant's name and how many of its requests were processed since the last call, counted as in
    `lensprune.engine.base.WorkCallback`, or the number answered by an executor that doesn't take ``on_work``.

    `known`: their answers were stored already, and nothing was run.
    """

    def __call__(self, variant: str, rows: float, *, known: bool = False) -> object: ...


def measure_cells(
    job: SweepJob,
    condition: Condition,
    variants: Sequence[Variant],
    executor: Executor,
    progress: CellProgress,
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
    for answered in _answered(job, condition, variants, executor, progress, log):
        outcomes = score_items(condition.task, condition.protocol, condition.items, answered.responses)
        if answered.variant.is_clean and condition.generates:
            warn_of_one_answer(task, condition.protocol, outcomes)
            warn_of_cut_off(task, condition.protocol, outcomes, condition.generation["max_new_tokens"])
        key = CellKey(answered.variant.name, task, condition.protocol)
        yield key, cell_table(key, answered.variant, outcomes, condition.items, condition.chances)
        waiting.discard(answered.variant.name)
    if waiting:
        raise LensPruneError(f"executor {executor.name} gave no answer for {', '.join(sorted(waiting))} on {task}")


def _answered(
    job: SweepJob,
    condition: Condition,
    variants: Sequence[Variant],
    executor: Executor,
    progress: CellProgress,
    log: AnswerLog | None,
) -> Iterator[VariantResponses]:
    """Each variant's answers to all requests; stored answers are read from `log`, and new ones are added to it."""
    requests = condition.requests
    known = {} if log is None else log.read()
    # A registered executor need not take these.
    takes = inspect.signature(executor.run).parameters
    given: dict[str, Any] = {"on_work": progress, "known": known}
    given = {name: value for name, value in given.items() if name in takes}
    wanted = {variant.name for variant in variants}
    if log is not None and condition.generates and "checkpoint" in takes:
        checkpoint = Checkpoint(log.checkpoint_path, log.write, partial(progress, known=True))
        given["checkpoint"] = checkpoint
        # What is stored of running texts may need variants whose cells are stored, too.
        variants = [v for v in job.variants if v.name in wanted | checkpoint.variants]
    reference = reference_of(job.model, condition, variants, job.options)
    # Variants with the same missing answers run together; all do if the executor knows what is missing.
    together: dict[tuple[int, ...], list[Variant]] = defaultdict(list)
    for variant in variants:
        kept = known.get(variant.name, {})
        if kept and variant.name in wanted:
            progress(variant.name, len(kept), known=True)
        if "known" in given:
            kept = {}
        together[tuple(i for i in range(len(requests)) if i not in kept)].append(variant)
    for missing, group in together.items():

        def keep(name: str, answers: Mapping[int, Response], places: tuple[int, ...] = missing) -> None:
            if log is not None:
                log.add(name, {places[index]: response for index, response in answers.items()})
            if "on_work" not in given:
                progress(name, len(answers))

        missing_requests = [requests[i] for i in missing]
        for answered in executor.run(missing_requests, group, reference=reference, on_answers=keep, **given):
            if answered.variant.name not in wanted:
                continue
            if "checkpoint" in given and log is not None:
                # Its cell is about to be stored, which a stored state may not know of.
                log.write()
            new = dict(zip(missing, answered.responses, strict=True))
            whole = known.get(answered.variant.name, {}) | new
            yield VariantResponses(answered.variant, tuple(whole[i] for i in range(len(requests))))


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
