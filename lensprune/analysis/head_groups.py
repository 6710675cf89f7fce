"""Compare removing query heads one by one with removing their whole key/value group, on the same items."""

from __future__ import annotations

import numpy as np
import pandas as pd

from lensprune.analysis.head_effects import ItemEffects, item_effects
from lensprune.analysis.intervals import mean_intervals
from lensprune.errors import UserError
from lensprune.runs.outcomes import Outcomes

__all__ = ["heads_and_groups", "heads_beside_groups"]


_OF_GROUP = [
    *("task", "protocol", "n", "layer", "group", "heads"),
    *("group_effect", "sum_of_heads", "strongest_head", "strongest_effect"),
]


def heads_beside_groups(heads: ItemEffects, groups: ItemEffects, group_size: int) -> pd.DataFrame:
    """One row per key/value group whose heads were also all removed one by one.

    Removing a shared key/value head, as the public script of arXiv:2510.02091 does, removes all query heads that read
    it. If heads are additive, the group's effect is the sum of theirs; an effect below the sum (more negative) means
    that the heads are redundant.

    Columns: ``task``, ``protocol``, ``n`` (items that both have), ``layer``, ``group``, ``heads`` (like ``3-5``),
    ``group_effect``, ``sum_of_heads``, ``strongest_head`` and ``strongest_effect`` (mean changes of the measure;
    negative: needed), ``interaction`` = group_effect − sum_of_heads with its 95% interval ``ci_low``, ``ci_high``
    (paired by item; NaN if a measure in nats has the same interaction on every item).

    Args:
        heads, groups: effects of one (task, protocol) and measure. Items on which either side has a value that is not
            finite don't count.
        group_size: query heads that share a key/value head.

    Raises:
        UserError: the task, protocol or measure differs, no item is shared, or no group had all its heads removed.
    """
    in_heads, in_groups = _shared_items(heads, groups)
    of_heads, of_groups = heads.differences[in_heads], groups.differences[in_groups]
    clusters = None if heads.clusters is None else heads.clusters[in_heads]
    effects = of_heads.mean(axis=0)
    place = {pair: i for i, pair in enumerate(zip(heads.layers, heads.heads, strict=True))}
    rows, interactions = [], []
    for index, (layer, group) in enumerate(zip(groups.layers, groups.heads, strict=True)):
        assert group is not None
        members = range(group * group_size, (group + 1) * group_size)
        if not all((layer, head) in place for head in members):
            continue
        columns = [place[layer, head] for head in members]
        strongest = min(columns, key=lambda column: effects[column])
        together, apart = of_groups[:, index], of_heads[:, columns].sum(axis=1)
        interactions.append(together - apart)
        label = f"{members[0]}-{members[-1]}" if len(members) > 1 else str(members[0])
        means = (float(together.mean()), float(apart.mean()))
        place_of = (heads.task, heads.protocol, len(in_heads), layer, group, label)
        rows.append((*place_of, *means, heads.heads[strongest], float(effects[strongest])))
    if not rows:
        raise UserError(
            "no key/value group was removed along with each of its heads separately: sweep over heads-and-groups"
        )
    largest = 1 + group_size
    bounds = (-largest, largest) if heads.measure == "correct" else None
    intervals = mean_intervals(np.stack(interactions, axis=1), clusters, bounds=bounds)
    frame = pd.DataFrame(rows, columns=_OF_GROUP)
    frame["interaction"], frame["ci_low"], frame["ci_high"] = intervals.delta, intervals.low, intervals.high
    return frame


def _shared_items(heads: ItemEffects, groups: ItemEffects) -> tuple[list[int], list[int]]:
    """The places of the items that both have, in either's order of heads; refuses effects that can't be compared."""
    for what in ("task", "protocol", "measure"):
        if getattr(heads, what) != getattr(groups, what):
            raise UserError(f"heads and groups differ in {what}: {getattr(heads, what)} and {getattr(groups, what)}")
    row_of = {item: i for i, item in enumerate(groups.item_ids)}
    in_heads = [i for i, item in enumerate(heads.item_ids) if item in row_of]
    if not in_heads:
        raise UserError(
            f"heads and groups share none of their {len(heads.item_ids)} and {len(groups.item_ids)} items: sweep both "
            "over the same ones"
        )
    return in_heads, [row_of[heads.item_ids[i]] for i in in_heads]


def heads_and_groups(
    outcomes: Outcomes,
    task: str | None = None,
    protocol: str | None = None,
    *,
    ablation: str | None = None,
    measure: str = "correct",
) -> list[pd.DataFrame]:
    """`heads_beside_groups` for each (task, protocol) of a run, or for the given ones.

    Raises:
        UserError: a name that is not part of this run, or the run did not remove both (over ``heads-and-groups``).
    """
    heads, groups = (
        item_effects(outcomes, task, protocol, component=component, ablation=ablation, measure=measure)
        for component in ("head", "kv_group")
    )
    size = outcomes.spec.n_heads // outcomes.spec.n_key_value_heads
    return [heads_beside_groups(of_heads, of_groups, size) for of_heads, of_groups in zip(heads, groups, strict=True)]
