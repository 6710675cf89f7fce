"""How far accuracy can fall: a loss is only seen where the clean model stands well above chance."""

from __future__ import annotations

import numpy as np
import scipy

from lensprune.analysis.summary import Group

__all__ = ["ACCURACY_MARGIN", "has_room", "room"]

ACCURACY_MARGIN = 0.05
"""Accuracy below which a loss counts as none."""
_ALPHA = 0.05


def room(group: Group) -> float:
    """Accuracy of the clean model minus chance: what a removal can take away. NaN before its cell is finished."""
    return np.nan if group.clean is None else float(group.clean.correct.mean() - group.chances.mean())


def has_room(group: Group, margin: float = ACCURACY_MARGIN) -> bool:
    """Whether the clean model is known to stand more than 2 × `margin` above chance, so that losing half of what it
    knows is a loss of more than `margin`: by the lower one-sided 95% Clopper–Pearson bound of its accuracy."""
    if group.clean is None or not len(group.clean.correct):
        return False
    right, n = int(group.clean.correct.sum()), len(group.clean.correct)
    lowest = float(scipy.stats.beta.ppf(_ALPHA, right, n - right + 1)) if right else 0.0
    return lowest - float(group.chances.mean()) > 2 * margin
