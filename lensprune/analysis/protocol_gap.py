"""The protocol gap: differences of Δμ between protocols, on the same items."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from jaxtyping import Float

from lensprune.ablation.variants import CLEAN
from lensprune.analysis.intervals import mean_intervals, unit_sums
from lensprune.analysis.multiplicity import LEVEL, discrete_bh
from lensprune.analysis.paired_tests import lower_tail
from lensprune.analysis.randomization import sign_flip_p
from lensprune.analysis.room import has_room, room
from lensprune.analysis.stopping import n_ranked
from lensprune.analysis.summary import Group, read_group
from lensprune.errors import UserError
from lensprune.runs.chance import beats_chance
from lensprune.runs.outcomes import Outcomes

__all__ = ["GAP_COLUMNS", "clear_gaps", "paired_gap", "protocol_gap", "task_gap"]

GAP_COLUMNS = (
    "variant",
    "component",
    "layer",
    "head",
    "ablation",
    "task_a",
    "protocol_a",
    "task_b",
    "protocol_b",
    "n",
    "delta_a",
    "delta_b",
    "relative_a",
    "relative_b",
    "gap",
    "ci_low",
    "ci_high",
    "p_value",
    "q_lower",
    "q_higher",
    "at_chance",
    "floor",
)


def paired_gap(a: Group, b: Group, hypotheses: int = 0) -> pd.DataFrame:
    """Δμ under `b` minus Δμ under `a`, variant by variant on the same items, with the columns `GAP_COLUMNS`.

    `gap` = `delta_b` − `delta_a` (negative: `b` loses more from the removal); `ci_low`, `ci_high`: 95% interval over
    items (or clusters), each with its four outcomes; `p_value`: two-sided, `sign_flip_p`; `q_lower`, `q_higher`:
    discrete false discovery rates over the variants, from one-sided exact p-values for a gap below and above 0
    (`discrete_bh`). `at_chance`: the clean model is at chance on one side, so ignore the gap. `relative_a`,
    `relative_b`: Δμ divided by the clean model's accuracy above chance; `floor`: on one side the clean model is not
    known to be more than 0.1 above chance (`has_room`), so a smaller loss there may be a floor effect.

    Args:
        hypotheses: number of changes in question (`discrete_bh`): in a screened run all parts that were ranked.

    Raises:
        UserError: the two sides have different items or no clean cell.
    """
    where = f"{a.task} under {a.protocol} and {b.task} under {b.protocol}"
    if a.clean is None or b.clean is None:
        raise UserError(f"{where} can't be compared before their clean cells are finished")
    if not a.clean.item_ids.equals(b.clean.item_ids):
        raise UserError(f"{where} have different items, so their losses can't be paired")
    names = [name for name in a.cells if name in b.cells and name != CLEAN.name]
    if not names:
        return pd.DataFrame(columns=list(GAP_COLUMNS))
    changes = []
    for group in (a, b):
        correct = np.stack([group.cells[name].correct for name in names], axis=1).astype(float)
        changes.append(correct - group.clean.correct[:, None])  # type: ignore[union-attr]
    differences = changes[1] - changes[0]
    interval = mean_intervals(differences, a.clusters, bounds=(-2, 2))
    counted = np.rint(differences * math.lcm(a.samples, b.samples))
    sums, _ = unit_sums(counted, a.clusters)
    q_lower, q_higher = (discrete_bh(lower_tail(signed), hypotheses=hypotheses) for signed in (sums, -sums))
    rows = [{key: a.cells[name].facts[key] for key in ("component", "layer", "head", "ablation")} for name in names]
    frame = pd.DataFrame(rows).assign(
        variant=names,
        task_a=a.task,
        protocol_a=a.protocol,
        task_b=b.task,
        protocol_b=b.protocol,
        n=len(differences),
        delta_a=changes[0].mean(axis=0),
        delta_b=changes[1].mean(axis=0),
        gap=interval.delta,
        ci_low=interval.low,
        ci_high=interval.high,
        p_value=sign_flip_p(counted),
        q_lower=q_lower,
        q_higher=q_higher,
        at_chance=bool(a.at_chance or b.at_chance),
        floor=not (has_room(a) and has_room(b)),
        relative_a=_relative(changes[0], a),
        relative_b=_relative(changes[1], b),
    )
    return frame[list(GAP_COLUMNS)].astype({"layer": "Int64", "head": "Int64"})


def _relative(changes: Float[np.ndarray, "item variant"], group: Group) -> Float[np.ndarray, " variant"]:
    """Mean change divided by the clean model's accuracy above chance; NaN if that is not positive."""
    above = room(group)
    return changes.mean(axis=0) / (above if above > 0 else np.nan)


def clear_gaps(gap: pd.DataFrame, q: float = LEVEL) -> pd.Series[bool]:
    """Which rows have a gap below or above 0 at false discovery rate `q`, with both sides above chance and room for a
    loss."""
    return beats_chance(gap) & ~gap["floor"].astype(bool) & (gap[["q_lower", "q_higher"]].min(axis=1) <= q)


def _joined(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    kept = [frame for frame in frames if len(frame)]
    return pd.concat(kept, ignore_index=True) if kept else pd.DataFrame(columns=list(GAP_COLUMNS))


def protocol_gap(outcomes: Outcomes, task: str | None = None) -> pd.DataFrame:
    """`paired_gap` for every task (or the given one) and every pair of its protocols, in the run's order.

    Raises:
        UserError: a name that is not part of this run, or a single protocol.
    """
    conditions = outcomes.select(task)
    if len(outcomes.spec.protocols) < 2:
        raise UserError(
            f"this run has one protocol, {outcomes.spec.protocols[0]}: sweep with two or more to compare them"
        )
    by_task: dict[str, list[Group]] = {}
    for condition in conditions:
        group = read_group(outcomes, *condition)
        if group is not None and group.clean is not None:
            by_task.setdefault(group.task, []).append(group)
    pairs = [pair for groups in by_task.values() for pair in combinations(groups, 2)]
    return _joined([paired_gap(*_on_shared_items(outcomes, *pair), n_ranked(outcomes.spec)) for pair in pairs])


def _on_shared_items(outcomes: Outcomes, a: Group, b: Group) -> tuple[Group, Group]:
    """Both on the first items, on which all variants of both were measured if a sweep stops early."""
    n = min(len(a.chances), len(b.chances))
    if outcomes.spec.stopping is None or len(a.chances) == len(b.chances):
        return a, b
    groups = [read_group(outcomes, group.task, group.protocol, np.arange(n)) for group in (a, b)]
    return groups[0], groups[1]  # type: ignore[return-value]


def task_gap(outcomes: Outcomes, a: str, b: str) -> pd.DataFrame:
    """`paired_gap` of two tasks with the same items under each protocol, such as closed book `a` against open book `b`.

    A negative gap means that the removal costs more under `b`.

    Raises:
        UserError: a name that is not part of this run, or tasks with different items.
    """
    frames = []
    for protocol in outcomes.spec.protocols:
        groups = [read_group(outcomes, task, protocol) for task in (a, b)]
        if all(group is not None and group.clean is not None for group in groups):
            shared = _on_shared_items(outcomes, *groups)  # type: ignore[arg-type]
            frames.append(paired_gap(*shared, n_ranked(outcomes.spec)))
    return _joined(frames)
