"""Progress of a sweep that stops early: which block of items comes next, and which variants are decided.

It depends only on the stored records, so a resumed sweep makes the same decisions.
"""

from __future__ import annotations

import pandas as pd

from lensprune.ablation.variants import CLEAN
from lensprune.analysis.stopping import further, stopping_of
from lensprune.analysis.summary import read_group
from lensprune.runs.outcomes import Outcomes, computed_once
from lensprune.runs.records import CellKey

__all__ = ["decided", "decisions", "next_block", "unfinished"]


def next_block(outcomes: Outcomes, task: str, protocol: str) -> tuple[int, list[str]] | None:
    """The first block of one (task, protocol) that is not measured yet, and the variants that lack it; ``None`` if
    every variant is decided."""
    found = _first_open(outcomes, task, protocol)
    return None if found is None else found[:2]


def _first_open(outcomes: Outcomes, task: str, protocol: str) -> tuple[int, list[str], list[str]] | None:
    """As `next_block`, with the changed variants that are undecided."""
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
            return block, lacking, going
        group = group or read_group(outcomes, task, protocol, whole=True)
        assert group is not None
        assert group.clean is not None
        right = [group.cells[name].correct.astype(float) for name in names]
        changes = [own - group.clean.correct[: len(own)] for own in right]
        open_parts = further(changes, group.clusters, stopping, block + 1)
        going = [name for name, goes_on in zip(names, open_parts, strict=True) if goes_on]
    return None


@computed_once
def decisions(outcomes: Outcomes) -> pd.DataFrame:
    """Progress of a sweep that stops early, for each `task` and `protocol`: the number of changed `variants`, how many
    are `decided`, and whether nothing is left to measure (`finished`)."""
    n = len(outcomes.spec.variants) - 1
    found = {cell: _first_open(outcomes, *cell) for cell in outcomes.cells}
    rows = [(*cell, n, n if own is None else n - len(own[2]), own is None) for cell, own in found.items()]
    return pd.DataFrame(rows, columns=["task", "protocol", "variants", "decided", "finished"])


def decided(outcomes: Outcomes) -> bool:
    """Whether nothing is left to measure in a sweep that stops early."""
    return bool(decisions(outcomes)["finished"].all())


def unfinished(outcomes: Outcomes) -> str:
    """Progress of an unfinished run, like ``3 of 5 cells``; empty for a finished one. A sweep that stops early is
    finished when every variant is decided."""
    if outcomes.spec.stopping is None:
        done, total = outcomes.n_finished, outcomes.n_expected
        return f"{done} of {total} cells" if done < total else ""
    if decided(outcomes):
        return ""
    frame = decisions(outcomes)
    text = f"{frame['decided'].sum()} of {frame['variants'].sum()} variants decided"
    return text if len(frame) == 1 else f"{text}, counted on each task and protocol"
