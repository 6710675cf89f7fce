"""Counts of how answers fail when a part is removed, layer by layer."""

from __future__ import annotations

from collections import Counter
from typing import get_args

import pandas as pd

from lensprune.ablation.choices import branch_names
from lensprune.ablation.variants import CLEAN
from lensprune.analysis.summary import summarise
from lensprune.errors import UserError
from lensprune.protocols.base import Failure
from lensprune.registry import in_words
from lensprune.runs.outcomes import Outcomes

__all__ = ["FAILURES", "failure_counts"]

FAILURES = tuple(kind for kind in get_args(Failure) if kind != "none")


def failure_counts(
    outcomes: Outcomes, task: str | None = None, protocol: str | None = None, *, component: str | None = None
) -> pd.DataFrame:
    """One row per layer and kind of failure: variant, task, protocol, component, ablation, layer (missing for the clean
    model), n, failure (``none``: right), count, share.

    Args:
        component: ``layer``, ``attention`` or ``mlp``; ``None`` takes the first of these that the run removes.

    Raises:
        UserError: a name that is not part of this run, or the run removes no such part.
    """
    summary = summarise(outcomes)
    branches = summary[summary["component"].isin(branch_names()) & summary["layer"].notna()]
    if component is not None:
        branches = branches[branches["component"] == component]
    if branches.empty:
        what = component or in_words(branch_names())
        raise UserError(f"there is nothing to draw: the run removes no single {what}")
    first = branches.iloc[0]
    kind = (branches["component"] == first["component"]) & (branches["ablation"] == first["ablation"])
    wanted: dict[str, int | None] = {str(row.variant): int(row.layer) for row in branches[kind].itertuples()}
    wanted[CLEAN.name] = None
    rows = []
    for key in outcomes.finished(task, protocol):
        if key.variant not in wanted:
            continue
        failures = outcomes.cell(key, ["failure"]).column("failure").to_pylist()
        counted = Counter(failures)
        removed = (first["component"], first["ablation"], wanted[key.variant])
        place = (key.variant, key.task, key.protocol, *removed, len(failures))
        rows += [(*place, name, counted[name], counted[name] / max(1, len(failures))) for name in ("none", *FAILURES)]
    columns = ["variant", "task", "protocol", "component", "ablation", "layer", "n", "failure", "count", "share"]
    return pd.DataFrame(rows, columns=columns).astype({"layer": "Int64"})
