"""The effect of every removed part on every item, from a run's records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import pandas as pd
import pyarrow as pa
from jaxtyping import Float, Int

from lensprune.ablation.choices import part_names
from lensprune.ablation.variants import CLEAN
from lensprune.errors import LensPruneError, UserError, unknown_name
from lensprune.runs.chance import CHANCE_COLUMNS, cell_at_chance
from lensprune.runs.outcomes import Outcomes
from lensprune.runs.records import CellKey

__all__ = ["MEASURES", "ItemEffects", "item_effects", "read_effects"]

MEASURES = ("correct", "gold_logprob", "logprob_margin")
"""``correct``: 1 if right, 0 if wrong; ``gold_logprob``: log-probability of the right answer, nats; ``logprob_margin``:
its lead over the best other option, nats. The last two do not exist under ``generate``."""


@dataclass(frozen=True)
class ItemEffects:
    """`differences[i, p]`: measure of item i with part p removed, minus the clean model's; negative: p was needed.

    `layers`, `heads`: location of each part (no head for a whole branch). `item_ids`: the items with finite values, in
    order. `at_chance`: the clean model does not beat guessing, on all items that it was measured on. `closed_book`: the
    task that has the same items without their context.
    """

    task: str
    protocol: str
    measure: str
    variants: tuple[str, ...]
    layers: tuple[int, ...]
    heads: tuple[int | None, ...]
    differences: Float[np.ndarray, "item part"]
    clusters: Int[np.ndarray, " item"] | None
    at_chance: bool
    item_ids: tuple[str, ...]
    closed_book: str | None = None

    @property
    def effects(self) -> Float[np.ndarray, " part"]:
        """Mean difference of each part over the items."""
        return self.differences.mean(axis=0)


def read_effects(
    outcomes: Outcomes,
    task: str,
    protocol: str,
    *,
    component: str = "head",
    ablation: str | None = None,
    measure: str = "correct",
) -> ItemEffects:
    """Read the effect of each removed part of one kind, item by item.

    Args:
        component: kind of part as in the summary: ``head``, ``kv_group``, ``layer``, ``attention``, ``mlp``.
        ablation: use parts removed by this ablation; ``None`` if the run has only one.
        measure: one of `MEASURES`.

    Raises:
        UserError: no such part was removed here, there are several ablations and none is chosen, the clean model is not
            measured yet, or the protocol lacks the measure.
        LensPruneError: cells contain different items.
    """
    if measure not in MEASURES:
        raise unknown_name("measure", measure, MEASURES)
    task = outcomes.task_named(task)
    where = f"{task} under {protocol}"
    clean, samples = _clean_cell(outcomes, task, protocol, measure), outcomes.samples(task, protocol)
    parts = [
        _checked_part(key.variant, cell, clean, measure, where, samples)
        for key in outcomes.finished(task, protocol)
        if key.variant != CLEAN.name
        and _is_removed((cell := outcomes.cell(key, [*_PART_COLUMNS, "item_id", measure])), component, ablation)
    ]
    # Variants of other names may make the same change; each part counts once.
    parts = list({(part.ablation, part.layer, part.head): part for part in reversed(parts)}.values())[::-1]
    if not parts and component not in part_names():
        raise unknown_name("component", component, part_names())
    if not parts:
        firsts = (outcomes.cell(key, _PART_COLUMNS).slice(0, 1) for key in outcomes.finished(task, protocol))
        rows = (row for first in firsts for row in first.to_pylist() if row["layer"] is not None)
        removed = ", ".join(sorted({f"{row['component']} by {row['ablation']}" for row in rows})) or "none"
        how = f" by {ablation}" if ablation else ""
        raise UserError(f"no {component} was removed{how} on {where}; single parts removed there: {removed}")
    kinds = sorted({part.ablation for part in parts})
    if len(kinds) > 1:
        raise UserError(f"{component}s were removed by several ablations on {where}: choose {' or '.join(kinds)}")
    before = _numbers(clean, measure, samples)
    if np.isnan(before).all():
        raise UserError(f"{protocol} has no {measure}: use measure 'correct'")
    differences = np.stack([part.values for part in parts], axis=1) - before[:, None]
    finite = np.isfinite(differences).all(axis=1)
    names = clean.column("cluster").to_pandas()[::samples]
    return ItemEffects(
        task=task,
        protocol=protocol,
        measure=measure,
        variants=tuple(part.variant for part in parts),
        layers=tuple(part.layer for part in parts),
        heads=tuple(part.head for part in parts),
        differences=differences[finite],
        clusters=pd.factorize(names)[0][finite] if names.notna().all() else None,
        at_chance=cell_at_chance(outcomes.cell(CellKey(CLEAN.name, task, protocol), CHANCE_COLUMNS, whole=True)),
        item_ids=tuple(clean.column("item_id").to_numpy(zero_copy_only=False)[::samples][finite]),
        closed_book=next(spec.closed_book for spec in outcomes.spec.tasks if spec.name == task),
    )


_PART_COLUMNS = ("component", "layer", "head", "ablation")


@dataclass(frozen=True)
class _RemovedPart:
    """A part's location (no head for a whole branch), how it was removed, and the measure on each item without it."""

    variant: str
    layer: int
    head: int | None
    ablation: str
    values: Float[np.ndarray, " item"]


def _numbers(cell: pa.Table, column: str, samples: int) -> Float[np.ndarray, " item"]:
    """A measure per item, averaged over its samples."""
    values = cell.column(column).to_numpy(zero_copy_only=False).astype(float)
    return cast(np.ndarray, values if samples == 1 else values.reshape(-1, samples).mean(axis=1))


def _clean_cell(outcomes: Outcomes, task: str, protocol: str, measure: str) -> pa.Table:
    key = CellKey(CLEAN.name, task, protocol)
    if key not in outcomes.finished(task, protocol):
        raise UserError(f"the clean model is not measured yet on {task} under {protocol}: finish the run first")
    return outcomes.cell(key, ["item_id", measure, "cluster"])


def _is_removed(cell: pa.Table, component: str, ablation: str | None) -> bool:
    """Whether the cell's variant removes a single part of this kind by this ablation."""
    if not len(cell) or cell.column("layer")[0].as_py() is None:
        return False
    kind, how = (cell.column(name)[0].as_py() for name in ("component", "ablation"))
    return bool(kind == component and ablation in (None, how))


def _checked_part(
    variant: str, cell: pa.Table, clean: pa.Table, measure: str, where: str, samples: int
) -> _RemovedPart:
    if not cell.column("item_id").combine_chunks().equals(clean.column("item_id").combine_chunks()):
        raise LensPruneError(f"records of {variant} and {CLEAN.name} on {where} contain different items")
    layer, head, ablation = (cell.column(name)[0].as_py() for name in _PART_COLUMNS[1:])
    return _RemovedPart(
        variant, int(layer), None if head is None else int(head), str(ablation), _numbers(cell, measure, samples)
    )


def item_effects(
    outcomes: Outcomes,
    task: str | None = None,
    protocol: str | None = None,
    *,
    component: str = "head",
    ablation: str | None = None,
    measure: str = "correct",
) -> list[ItemEffects]:
    """`read_effects` for each (task, protocol) of a run, or for the given ones.

    Raises:
        UserError: as `read_effects`, a name that is not part of this run, or parts that were chosen by screening.
    """
    conditions = outcomes.select(task, protocol)
    if outcomes.spec.screen is not None and component == outcomes.spec.screen["component"]:
        raise UserError(
            "this run is screened: the heads that it measured were chosen for their effects, so they don't "
            "represent all heads; see screen(), or sweep without screen"
        )
    return [read_effects(outcomes, *c, component=component, ablation=ablation, measure=measure) for c in conditions]
