"""Whether a model beats chance: the rule, and the one filter on it."""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from scipy import stats

__all__ = ["at_chance", "beats_chance", "known_at_chance"]


def at_chance(correct: Bool[np.ndarray, " item"], chances: Float[np.ndarray, " item"], alpha: float = 0.05) -> bool:
    """Whether the number of right answers could well come from uninformed guesses.

    One-sided exact test: guesses are right independently with each item's own chance (a Poisson-binomial law, the
    binomial one when all chances are equal); at chance when P(as many or more right) ≥ `alpha`. Where the chance
    is 0 for every item one right answer already refutes it, so there the rule asks for a lower 95%
    Clopper–Pearson bound above 0 and at least two right answers, since one can be an accident of extraction.
    No items: at chance.
    """
    n, right = len(correct), int(correct.sum())
    if n == 0:
        return True
    if not np.any(chances > 0):
        lower = stats.beta.ppf(alpha, right, n - right + 1) if right else 0.0
        return not (lower > 0 and right >= 2)
    law = np.ones(1)
    for chance, count in zip(*np.unique(chances, return_counts=True), strict=True):
        law = np.convolve(law, stats.binom.pmf(np.arange(count + 1), count, chance))
    return bool(law[right:].sum() >= alpha)


def beats_chance(frame: pd.DataFrame) -> pd.Series[bool]:
    """Rows whose Δμ may be ranked or called significant: `at_chance` is known and false.

    Where it is unknown, since the clean model is not measured yet, the row counts as at chance.
    """
    return frame["at_chance"].eq(False).fillna(False).astype(bool)


def known_at_chance(frame: pd.DataFrame) -> pd.Series[bool]:
    """Rows of which a page may say that the clean model is at chance: `at_chance` is known and true."""
    return frame["at_chance"].eq(True).fillna(False).astype(bool)
