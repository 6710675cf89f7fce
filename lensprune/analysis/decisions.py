"""Progress of a sweep that stops early: which block of items comes next, and which variants are decided.

It depends only on the stored records, so a resumed sweep makes the same decisions.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from lensprune.ablation.variants import CLEAN
from lensprune.analysis.stopping import further, hypotheses_of, stopping_of
from lensprune.analysis.summary import read_group
from lensprune.runs.outcomes import Outcomes, computed_once
from lensprune.runs.records import CellKey

__all__ = ["OpenBlock", "decided", "decisions", "next_block", "unfinished"]


@dataclass(frozen=True)
class OpenBlock:
    """A block that is to be measured: the variants that `lack` it, and the changed ones that are `undecided`."""

    block: int
    lack: tuple[str, ...]
    undecided: tuple[str, ...]


def next_block(outcomes: Outcomes, task: str, protocol: str) -> OpenBlock | None:
    """The first block of one (task, protocol) that is still to be measured; ``None`` when every variant is decided and
    the clean model was measured on all items.

    The clean model is judged (whether it beats chance, how accurate it is) on all items, whenever its variants stop.
    """
    stopping = stopping_of(outcomes.spec.stopping)
    assert stopping is not None
    names = [name for name in outcomes.spec.variant_names if name != CLEAN.name]
    going, group = list(names), None
    for block in range(len(stopping.items)):
        wanted = (CellKey(name, task, protocol, block) for name in (CLEAN.name, *going))
        lacking = [key.variant for key in wanted if not outcomes.is_stored(key)]
        if lacking:
            return OpenBlock(block, tuple(lacking), tuple(going))
        if not going:
            continue
        group = group or read_group(outcomes, task, protocol, whole=True)
        assert group is not None
        assert group.clean is not None
        right = [group.cells[name].correct.astype(float) for name in names]
        changes = [correct - group.clean.correct[: len(correct)] for correct in right]
        open_parts = further(changes, group.clusters, stopping, block + 1, hypotheses_of(outcomes.spec))
        going = [name for name, goes_on in zip(names, open_parts, strict=True) if goes_on]
    return None


@computed_once
def decisions(outcomes: Outcomes) -> pd.DataFrame:
    """Progress of a sweep that stops early, for each `task` and `protocol`: the number of changed `variants`, how many
    are `decided`, and whether nothing is left to measure (`finished`)."""
    n = len(outcomes.spec.variants) - 1
    blocks = {condition: next_block(outcomes, *condition) for condition in outcomes.conditions}
    rows = [
        (*condition, n, n if block is None else n - len(block.undecided), block is None)
        for condition, block in blocks.items()
    ]
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
    if (frame["decided"] == frame["variants"]).all():
        return "all variants decided, the clean model not measured on all items"
    text = f"{frame['decided'].sum()} of {frame['variants'].sum()} variants decided"
    return text if len(frame) == 1 else f"{text}, counted on each task and protocol"
