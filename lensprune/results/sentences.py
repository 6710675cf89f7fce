"""The results of a sweep, in one sentence per task."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from lensprune.ablation.variants import CLEAN
from lensprune.analysis.critical import critical
from lensprune.analysis.stopping import level_of
from lensprune.analysis.summary import summarise
from lensprune.output.plain_text import for_terminal, in_ranges
from lensprune.runs.chance import beats_chance
from lensprune.runs.outcomes import Outcomes

__all__ = ["task_sentences"]

_NAMED = 4
"""Parts that are no whole layers are named one by one, up to so many."""


def task_sentences(outcomes: Outcomes) -> list[str]:
    """For each task which parts it needs under each protocol (`critical`, at the run's own q), and which one costs
    most; what can't be said, because the clean model is at chance or no loss is certain, is said."""
    summary, level = summarise(outcomes), level_of(outcomes.spec)
    return [
        f"{for_terminal(str(task))}: {_sentence(rows, level)}." for task, rows in summary.groupby("task", sort=False)
    ]


def _sentence(rows: pd.DataFrame, level: float) -> str:
    known = rows[beats_chance(rows)]
    protocols = list(dict.fromkeys(known["protocol"]))
    silent = [str(p) for p in dict.fromkeys(rows["protocol"]) if p not in protocols]
    at_chance = f"under {_joined(silent)} the clean model is not known to beat chance, so nothing can be detected"
    if not protocols:
        return at_chance
    changed = known[known["variant"] != CLEAN.name]
    needed = critical(changed, level)
    what = _kind(changed)
    counts = [
        _needed(needed[needed["protocol"] == protocol], changed[changed["protocol"] == protocol], what, i == 0)
        + f" under {protocol}"
        for i, protocol in enumerate(protocols)
    ]
    said = f"the model needs {_joined(counts)} (q ≤ {level:g})"
    if len(needed):
        worst = needed.sort_values("delta", kind="stable").iloc[0]
        said += (
            f"; without {worst['variant'].rpartition('.')[0] or worst['variant']} accuracy falls most, from "
            f"{worst['accuracy_clean']:.2f} to {worst['accuracy']:.2f} under {worst['protocol']}"
        )
    return said + (f"; {at_chance}" if silent else "")


def _kind(changed: pd.DataFrame) -> str:
    kinds = changed["component"].dropna().unique()
    return "layers" if list(kinds) == ["layer"] and changed["component"].notna().all() else "parts"


def _needed(needed: pd.DataFrame, changed: pd.DataFrame, what: str, first: bool) -> str:
    """``3 of 30 layers (0–1, 29)``, or ``12 (…)`` after the first."""
    of = f" of {len(changed)} {what if len(changed) > 1 else what[:-1]}" if first else ""
    if needed.empty:
        return f"none{of}"
    return f"{len(needed)}{of} ({_names(needed, what)})"


def _names(needed: pd.DataFrame, what: str) -> str:
    if what == "layers" and needed["layer"].is_unique:
        return in_ranges(needed["layer"].astype(int))
    names = needed.sort_values("delta", kind="stable")["variant"].astype(str).tolist()
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _joined(parts: Sequence[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), *parts[-1:]] if len(parts) > 1 else parts)
