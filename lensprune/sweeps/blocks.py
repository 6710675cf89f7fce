"""Blocks of items, for sweeps whose variants stop at different ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pyarrow as pa

from lensprune.ablation.variants import CLEAN
from lensprune.analysis.stopping import further, stopping_of
from lensprune.analysis.summary import read_group
from lensprune.engine.base import Executor, ProgressCallback
from lensprune.runs.answers import AnswerLog
from lensprune.runs.outcomes import Outcomes
from lensprune.runs.records import CellKey
from lensprune.sweeps.cells import measure_cells
from lensprune.sweeps.prepare import Condition, SweepJob

__all__ = ["decided", "measure_block", "next_block"]


def next_block(outcomes: Outcomes, task: str, protocol: str) -> tuple[int, list[str]] | None:
    """The first block of one (task, protocol) that is still to be measured, and the variants that lack it; ``None``
    when every variant is decided.

    It depends on the stored records alone, so a sweep that was stopped takes the same decisions.
    """
    stopping = stopping_of(outcomes.spec.stopping)
    assert stopping is not None
    names = [name for name in outcomes.spec.variant_names if name != CLEAN.name]
    going, group = list(names), None
    for block in range(len(stopping.items)):
        if not going:
            return None
        wanted = (CellKey(name, task, protocol, block) for name in (CLEAN.name, *going))
        lacking = [key.variant for key in wanted if not outcomes.is_stored(key)]
        if lacking:
            return block, lacking
        group = group or read_group(outcomes, task, protocol, whole=True)
        assert group is not None
        assert group.clean is not None
        right = [group.cells[name].correct.astype(float) for name in names]
        changes = [own - group.clean.correct[: len(own)] for own in right]
        open_parts = further(changes, group.clusters, stopping, block + 1)
        going = [name for name, goes_on in zip(names, open_parts, strict=True) if goes_on]
    return None


def decided(outcomes: Outcomes) -> bool:
    """Whether nothing is left to measure."""
    return all(next_block(outcomes, *cell) is None for cell in outcomes.cells)


def measure_block(
    job: SweepJob,
    condition: Condition,
    block: int,
    names: list[str],
    executor: Executor,
    progress: ProgressCallback,
    log: AnswerLog | None = None,
) -> Iterator[tuple[CellKey, pa.Table]]:
    """As `measure_cells`, of one block of the items."""
    stopping = job.options.stopping
    assert stopping is not None
    start, stop = (0, *stopping.items)[block : block + 2]
    part = replace(condition, items=condition.items[start:stop], chances=condition.chances[start:stop])
    variants = [variant for variant in job.variants if variant.name in names]
    for key, table in measure_cells(job, part, variants, executor, progress, log):
        yield key._replace(block=block), table
