"""Blocks of items, for sweeps whose variants stop at different ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pyarrow as pa

from lensprune.analysis.decisions import decisions, next_block
from lensprune.analysis.stopping import Stopping
from lensprune.engine.base import Executor, ProgressCallback
from lensprune.runs.answers import AnswerLog
from lensprune.runs.outcomes import Outcomes
from lensprune.runs.records import CellKey
from lensprune.sweeps.cells import measure_cells
from lensprune.sweeps.prepare import Condition, SweepJob

__all__ = ["block_requests", "measure_block", "say_progress"]


def measure_block(
    job: SweepJob,
    condition: Condition,
    block: int,
    names: Sequence[str],
    executor: Executor,
    progress: ProgressCallback,
    log: AnswerLog | None = None,
) -> Iterator[tuple[CellKey, pa.Table]]:
    """As `measure_cells`, for one block of the items."""
    stopping = job.options.stopping
    assert stopping is not None
    start, stop = (0, *stopping.items)[block : block + 2]
    part = replace(condition, items=condition.items[start:stop], chances=condition.chances[start:stop])
    variants = [variant for variant in job.variants if variant.name in names]
    for key, table in measure_cells(job, part, variants, executor, progress, log):
        yield key._replace(block=block), table


def block_requests(condition: Condition, stopping: Stopping | None) -> tuple[int, ...]:
    """Number of requests in each block of items; without a stopping rule, all items are one block."""
    if stopping is None:
        return (len(condition.requests),)
    return tuple(sum(len(item.requests) for item in condition.items[a:b]) for a, b in pairwise((0, *stopping.items)))


def say_progress(bar: Any, outcomes: Outcomes, requests: Mapping[tuple[str, str], tuple[int, ...]], doing: str) -> None:
    """Show on a progress bar what is running and how many variants are decided.

    Its total assumes that no further variant is decided before the last look.

    Args:
        requests: `block_requests` of each (task, protocol).
    """
    found, left = decisions(outcomes), 0
    for cell in outcomes.cells:
        if (own := next_block(outcomes, *cell)) is not None:
            sizes = requests[cell]
            left += len(own.lack) * sizes[own.block] + (len(own.undecided) + 1) * sum(sizes[own.block + 1 :])
    bar.total = bar.n + left
    bar.set_description(f"{doing}, {found['decided'].sum()} of {found['variants'].sum()} variants decided")
