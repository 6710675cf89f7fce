"""How far accuracy can fall: a loss can only be detected if the clean model is well above chance."""

from __future__ import annotations

import numpy as np
import scipy

from lensprune.analysis.summary import Group

__all__ = ["ACCURACY_MARGIN", "has_room", "room"]

ACCURACY_MARGIN = 0.05
"""Loss of accuracy up to which a loss counts as none."""
_ALPHA = 0.05


def room(group: Group) -> float:
    """Accuracy of the clean model minus chance, the most that a removal can cost. NaN until the clean cell is
    finished."""
    return np.nan if group.clean is None else float(group.clean.correct.mean() - group.chances.mean())


def has_room(group: Group, margin: float = ACCURACY_MARGIN) -> bool:
    """Whether the clean model is known to be more than 2 × `margin` above chance, so that losing half of its lead is a
    loss of more than `margin`; decided by the lower one-sided 95% Clopper–Pearson bound of its accuracy."""
    if group.clean is None or not len(group.clean.correct):
        return False
    right, n = int(group.clean.correct.sum()), len(group.clean.correct)
    lowest = float(scipy.stats.beta.ppf(_ALPHA, right, n - right + 1)) if right else 0.0
    return lowest - float(group.chances.mean()) > 2 * margin
