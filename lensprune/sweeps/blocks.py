"""Blocks of items, for sweeps whose variants stop at different ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pyarrow as pa

from lensprune.engine.base import Executor
from lensprune.runs.answers import AnswerLog
from lensprune.runs.records import CellKey
from lensprune.sweeps.cells import CellProgress, measure_cells
from lensprune.sweeps.prepare import Condition, SweepJob

__all__ = ["measure_block"]


def measure_block(
    job: SweepJob,
    condition: Condition,
    block: int,
    names: list[str],
    executor: Executor,
    progress: CellProgress,
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
