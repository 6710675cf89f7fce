"""Critical parts: those that the model needs for a task."""

from __future__ import annotations

import pandas as pd

from lensprune.ablation.choices import branch_names
from lensprune.analysis.multiplicity import LEVEL
from lensprune.analysis.stopping import level_of
from lensprune.analysis.summary import summarise, summary_at
from lensprune.errors import UserError
from lensprune.runs.chance import beats_chance
from lensprune.runs.outcomes import Outcomes

__all__ = ["critical", "critical_layers", "significant"]

_COLUMNS = [
    "task", "protocol", "variant", "component", "layer", "ablation", "n", "accuracy_clean", "accuracy", "delta",
    "delta_relative", "ci_low", "ci_high", "p_value", "q_loss",
]  # fmt: skip


def critical(summary: pd.DataFrame, q: float = LEVEL) -> pd.DataFrame:
    """The rows of a summary whose variant lowers accuracy: ``delta < 0`` and ``q_loss <= q``, with the clean model
    above chance. Rows at chance are left out, since nothing can be concluded from them.

    Raises:
        UserError: `q` outside 0 to 1.
    """
    if not 0 < q <= 1:
        raise UserError(f"q {q} is not a false discovery rate: expected a number above 0, up to 1")
    return summary[beats_chance(summary) & (summary["delta"] < 0) & (summary["q_loss"] <= q)]


def significant(frame: pd.DataFrame, q: float = LEVEL) -> pd.Series[bool]:
    """Which rows of a summary lose or gain at false discovery rate `q`, with the clean model above chance."""
    return beats_chance(frame) & (frame[["q_loss", "q_gain"]].min(axis=1) <= q)


def critical_layers(
    outcomes: Outcomes, task: str | None = None, protocol: str | None = None, q: float | None = None
) -> pd.DataFrame:
    """Layers (or attention or MLP branches) whose removal lowers accuracy (see `critical`), largest loss first.

    Args:
        q: false discovery rate; ``None`` takes that of the run's planned looks, or 0.05 without planned looks.

    Raises:
        UserError: a name that is not part of this run, or `q` outside 0 to 1.
    """
    q = level_of(outcomes.spec) if q is None else q
    conditions = set(outcomes.select(task, protocol))
    summary = critical(summarise(outcomes) if q <= LEVEL else summary_at(outcomes, q), q)
    here = [condition in conditions for condition in zip(summary["task"], summary["protocol"], strict=True)]
    chosen = summary[pd.Series(here, summary.index, dtype=bool) & summary["component"].isin(branch_names())]
    return chosen.sort_values("delta", kind="stable")[_COLUMNS].reset_index(drop=True)
