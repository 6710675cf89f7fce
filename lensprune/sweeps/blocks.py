"""Blocks of items, for sweeps whose variants stop at different ones."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import pyarrow as pa

from lensprune.ablation.variants import CLEAN
from lensprune.analysis.decisions import decisions, next_block
from lensprune.analysis.stopping import Stopping
from lensprune.engine.base import Executor
from lensprune.runs.answers import AnswerLog
from lensprune.runs.outcomes import Outcomes
from lensprune.runs.records import CellKey
from lensprune.sweeps.answering import AnswerProgress
from lensprune.sweeps.cells import measure_cells
from lensprune.sweeps.conditions import Condition
from lensprune.sweeps.prepare import SweepJob

__all__ = ["block_requests", "blocks_left", "decided_so_far", "measure_block"]


def measure_block(
    job: SweepJob,
    condition: Condition,
    block: int,
    names: Sequence[str],
    executor: Executor,
    progress: AnswerProgress,
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


Work = Callable[[tuple[str, str], str, float], float]
"""The work of a number of requests of one (task, protocol) under a variant."""


def blocks_left(
    outcomes: Outcomes,
    requests: Mapping[tuple[str, str], tuple[int, ...]],
    work: Work,
    kind: Callable[[tuple[str, str]], str] = lambda condition: "",
) -> dict[str, float]:
    """The work of each kind that is left if no further variant is decided before the last look.

    Args:
        requests: `block_requests` of each (task, protocol).
        kind: of the work of one (task, protocol).
    """
    left: dict[str, float] = defaultdict(float)
    for condition in outcomes.conditions:
        if (block := next_block(outcomes, *condition)) is not None:
            sizes = requests[condition]
            later = sum(sizes[block.block + 1 :])
            left[kind(condition)] += sum(work(condition, name, sizes[block.block]) for name in block.lack)
            left[kind(condition)] += sum(work(condition, name, later) for name in (CLEAN.name, *block.undecided))
    return dict(left)


def decided_so_far(outcomes: Outcomes) -> str:
    """How many variants are decided, in words."""
    decided = decisions(outcomes)
    return f"{decided['decided'].sum()} of {decided['variants'].sum()} variants decided"
