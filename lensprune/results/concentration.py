"""Tables of a sweep over heads besides its summary: whether few heads carry a task, and whether tasks share them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from lensprune.ablation.choices import head_names
from lensprune.ablation.variants import CLEAN
from lensprune.analysis.concentration import concentration_table
from lensprune.analysis.decisions import unfinished
from lensprune.analysis.head_effects import ItemEffects, item_effects
from lensprune.analysis.overlap import overlap
from lensprune.analysis.summary import summarise
from lensprune.runs.outcomes import Outcomes

__all__ = ["NOT_OF_ALL_HEADS", "HeadTables", "concentration_files", "head_tables"]

NOT_OF_ALL_HEADS = (
    "concentration: no table, since this sweep was screened: the heads that it measured were chosen for their effects"
)
_SHARED = 10


@dataclass(frozen=True)
class HeadTables:
    """Heads under one ablation: their effects by (task, protocol), concentration of each, and overlap of each two
    (``None`` for a single one)."""

    effects: list[ItemEffects]
    concentration: pd.DataFrame
    overlap: pd.DataFrame | None


def head_tables(outcomes: Outcomes, ablation: str) -> HeadTables:
    """Concentration and overlap of heads under one ablation. Overlap is of the ten strongest, or of half of the heads
    where there are fewer than twenty: that two tasks share all heads says nothing.

    Raises:
        UserError: no head was ablated so, or the run is screened.
    """
    effects = item_effects(outcomes, ablation=ablation)
    concentrated = concentration_table(effects)
    shared = overlap(effects, min(_SHARED, max(1, len(effects[0].variants) // 2))) if len(effects) > 1 else None
    return HeadTables(effects, concentrated, shared)


def concentration_files(outcomes: Outcomes) -> dict[str, pd.DataFrame]:
    """``concentration.csv`` and, with two or more (task, protocol) pairs, ``overlap.csv`` of a sweep over heads; one of
    each per ablation, named like ``concentration_mean.csv``, where there are several. The effects are Δμ.

    Empty for a run that is not finished, is screened, or removes anything but single heads and key/value groups: of
    a selection of parts can't show how few carry a task.
    """
    if outcomes.spec.screen is not None or unfinished(outcomes):
        return {}
    summary = summarise(outcomes)
    changed = summary[summary["variant"] != CLEAN.name]
    heads = changed[changed["component"] == "head"]
    if not changed["component"].isin(head_names()).all():
        return {}
    files = {}
    ways = list(dict.fromkeys(heads["ablation"]))
    for ablation in ways:
        if heads.loc[heads["ablation"] == ablation, "variant"].nunique() < 2:
            continue
        tables = head_tables(outcomes, ablation)
        name = f"_{file_part(ablation, ways)}" if len(ways) > 1 else ""
        files[f"concentration{name}.csv"] = tables.concentration
        if tables.overlap is not None:
            files[f"overlap{name}.csv"] = tables.overlap
    return files


def file_part(ablation: str, ways: Sequence[str]) -> str:
    """How a file's name mentions an ablation, one of several `ways`; positions such as ``regex:a/b`` get a number."""
    return ablation if re.fullmatch(r"[\w.+@-]{1,60}", ablation) else f"ablation{ways.index(ablation)}"
