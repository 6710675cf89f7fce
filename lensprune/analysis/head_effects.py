"""The effect of every removed part on every item, out of a run's records."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from lensprune.ablation.variants import CLEAN
from lensprune.errors import LensPruneError, UserError, unknown_name
from lensprune.runs.chance import CHANCE_COLUMNS, cell_at_chance
from lensprune.runs.outcomes import Outcomes
from lensprune.runs.records import CellKey

__all__ = ["MEASURES", "ItemEffects", "item_effects", "read_effects"]

MEASURES = ("correct", "gold_logprob", "logprob_margin")
"""``correct``: right or wrong; ``gold_logprob``: log-probability of the right answer, nats; ``logprob_margin``: its
lead over the best other option, nats. The last two do not exist under ``generate``."""


@dataclass(frozen=True)
class ItemEffects:
    """`differences[i, p]`: measure of item i with part p removed, minus the clean model's; negative: p was needed.

    `layers`, `heads`: place of each part (head −1 for a whole branch). `dropped`: items left out because a value is
    not finite; `item_ids`: the others, in order. `at_chance`: the clean model does not beat guessing on these items.
    """

    task: str
    protocol: str
    measure: str
    variants: tuple[str, ...]
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    differences: Float[np.ndarray, "item part"]
    clusters: Int[np.ndarray, " item"] | None
    dropped: int
    at_chance: bool
    item_ids: tuple[str, ...]

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
    """Read what each removed part of one kind changes, item by item.

    Args:
        component: kind of part as the summary names it: ``head``, ``kv_group``, ``layer``, ``attention``, ``mlp``.
        ablation: take parts removed in this way; ``None`` is right where there is only one way.
        measure: one of `MEASURES`.

    Raises:
        UserError: no such part was removed here, several ablations and none chosen, the clean model is not measured
            yet, or the protocol does not give the measure.
        LensPruneError: cells hold different items.
    """
    if measure not in MEASURES:
        raise unknown_name("measure", measure, MEASURES)
    where = f"{task} under {protocol}"
    finished = outcomes.finished(task, protocol)
    clean_key = CellKey(CLEAN.name, task, protocol)
    if clean_key not in finished:
        raise UserError(f"the clean model is not measured yet on {where}: finish the run first")
    clean = outcomes.cell(clean_key, list(dict.fromkeys(["item_id", measure, "cluster", *CHANCE_COLUMNS])))
    kept, facts, columns = [], [], []
    for key in finished:
        if key == clean_key:
            continue
        cell = outcomes.cell(key, ["item_id", measure, "component", "layer", "head", "ablation"])
        first = {c: cell.column(c)[0].as_py() for c in ("component", "layer", "head", "ablation")} if len(cell) else {}
        if first.get("component") != component or first.get("layer") is None:
            continue
        if ablation not in (None, first["ablation"]):
            continue
        if not cell.column("item_id").combine_chunks().equals(clean.column("item_id").combine_chunks()):
            raise LensPruneError(f"records of {key.variant} and {CLEAN.name} on {where} hold different items")
        kept.append(key.variant)
        facts.append(first)
        columns.append(cell.column(measure).to_numpy(zero_copy_only=False).astype(float))
    kinds = sorted({str(fact["ablation"]) for fact in facts})
    if not kept:
        raise UserError(f"no {component} was removed{f' by {ablation}' if ablation else ''} on {where}")
    if len(kinds) > 1:
        raise UserError(f"{component}s were removed in several ways on {where}: choose ablation {' or '.join(kinds)}")
    base = clean.column(measure).to_numpy(zero_copy_only=False).astype(float)
    if np.isnan(base).all():
        raise UserError(f"{protocol} gives no {measure}: use measure 'correct'")
    differences = np.stack(columns, axis=1) - base[:, None]
    finite = np.isfinite(differences).all(axis=1)
    names = clean.column("cluster").to_pandas()
    clusters = pd.factorize(names)[0][finite] if names.notna().all() else None
    return ItemEffects(
        task=task,
        protocol=protocol,
        measure=measure,
        variants=tuple(kept),
        layers=tuple(int(fact["layer"]) for fact in facts),
        heads=tuple(-1 if fact["head"] is None else int(fact["head"]) for fact in facts),
        differences=differences[finite],
        clusters=clusters,
        dropped=int((~finite).sum()),
        at_chance=cell_at_chance(clean),
        item_ids=tuple(clean.column("item_id").to_numpy(zero_copy_only=False)[finite]),
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
    """`read_effects` for each (task, protocol) of a run, or for those that are named.

    Raises:
        UserError: as `read_effects`, a name that is not part of this run, or parts that were chosen by screening.
    """
    cells = outcomes.select(task, protocol)
    if outcomes.spec.screen is not None and component == outcomes.spec.screen["component"]:
        raise UserError(
            "this run is screened: the heads that it measured were chosen for their effects, so they say "
            "nothing of all heads; see screen(), or sweep without screen"
        )
    return [read_effects(outcomes, *cell, component=component, ablation=ablation, measure=measure) for cell in cells]
