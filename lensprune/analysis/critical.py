"""Critical: what counts as a part that the model needs for a task."""

from __future__ import annotations

import pandas as pd

from lensprune.ablation.choices import branch_names
from lensprune.analysis.summary import summarise_cells
from lensprune.errors import UserError
from lensprune.runs.chance import beats_chance
from lensprune.runs.outcomes import Outcomes

__all__ = ["MAX_Q", "critical", "critical_layers"]

MAX_Q = 0.05
"""False discovery rate at which a loss counts."""
_COLUMNS = [
    "task", "protocol", "variant", "component", "layer", "ablation", "n", "accuracy_clean", "accuracy", "delta",
    "delta_relative", "ci_low", "ci_high", "p_value", "q_value",
]  # fmt: skip


def critical(summary: pd.DataFrame, q: float = MAX_Q) -> pd.DataFrame:
    """The rows of a summary whose variant lowers accuracy: ``delta < 0`` and ``q_value <= q``, the clean model above
    chance. Where it is at chance nothing can be said, so these rows are left out.

    Raises:
        UserError: `q` outside 0 to 1.
    """
    if not 0 < q <= 1:
        raise UserError(f"q {q} is not a false discovery rate: expected a number above 0, up to 1")
    return summary[beats_chance(summary) & (summary["delta"] < 0) & (summary["q_value"] <= q)]


def critical_layers(
    outcomes: Outcomes, task: str | None = None, protocol: str | None = None, q: float = MAX_Q
) -> pd.DataFrame:
    """Layers (or attention or MLP branches) whose removal lowers accuracy, see `critical`, the most needed first.

    Raises:
        UserError: a name that is not part of this run, or `q` outside 0 to 1.
    """
    summary = critical(summarise_cells(outcomes, task, protocol), q)
    chosen = summary[summary["component"].isin(branch_names())]
    return chosen.sort_values("delta", kind="stable")[_COLUMNS].reset_index(drop=True)
