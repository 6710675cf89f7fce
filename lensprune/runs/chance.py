"""The rule for whether a model beats chance, and the filter based on it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import scipy
from jaxtyping import Bool, Float

__all__ = ["CHANCE_COLUMNS", "at_chance", "beats_chance", "cell_at_chance", "items_to_beat_chance", "known_at_chance"]

CHANCE_COLUMNS = ("correct", "chance", "target", "prediction", "sample")
"""Columns of a cell's records that `cell_at_chance` reads."""
ALPHA = 0.05
_SHUFFLES = 2000
_BLOCK = 2_000_000
_MAX_ITEMS = 5000
_POWER = 0.8


def at_chance(
    correct: Bool[np.ndarray, " item"],
    chances: Float[np.ndarray, " item"],
    targets: Sequence[str | None] | None = None,
    predictions: Sequence[str | None] | None = None,
) -> bool:
    """Whether the right answers are consistent with guessing, either at random or always the same answer.

    The model beats chance if both one-sided tests reject at 0.05:

    * Guesses are right independently with each item's chance (a Poisson-binomial distribution): P(as many or more
      right). If the chance is 0 for every item, a single right answer would already reject this, so the rule instead
      requires a lower 95% Clopper–Pearson bound above 0 and at least two right answers, since one can be an accident of
      extraction.
    * Right answers are shuffled over the items: the share of 2,000 shuffles of `targets` with as many matches (Phipson
      & Smyth 2010, the same shuffles every time). A model that always gives one answer has as many matches in every
      shuffle, so p = 1, however often that answer is right. If no right answer occurs twice, only the first test
      counts. If all right answers are the same, knowing them is indistinguishable from always giving that answer: at
      chance.

    No items: at chance.

    Args:
        targets, predictions: right and given answer of each item, as texts; ``None``: only the first test.
    """
    n, right = len(correct), int(correct.sum())
    if n == 0:
        return True
    if not np.any(chances > 0):
        lower = scipy.stats.beta.ppf(ALPHA, right, n - right + 1) if right else 0.0
        if not (lower > 0 and right >= 2):
            return True
    elif scipy.stats.poisson_binom(chances).sf(right - 1) >= ALPHA:
        return True
    if targets is None or predictions is None:
        return False
    return _as_many_when_shuffled(correct, targets, predictions) >= ALPHA


def _as_many_when_shuffled(
    correct: Bool[np.ndarray, " item"], targets: Sequence[str | None], predictions: Sequence[str | None]
) -> float:
    """p of the second test of `at_chance`; 0 if no right answer occurs twice."""
    texts = [None if text is None else text.strip().casefold() for text in (*targets, *predictions)]
    both = pd.factorize(pd.Series(texts, dtype=object))[0]
    right, given = both[: len(correct)], both[len(correct) :]
    # The records decide what is right, even if texts differ in more than case ("18" and "18.0").
    given = np.where(correct, right, np.where(given == right, -1, given))
    if len(np.unique(right)) == len(right):
        return 0.0
    generator = np.random.default_rng(0)
    as_many, step = 0, max(1, _BLOCK // len(right))
    for start in range(0, _SHUFFLES, step):
        shuffled = generator.permuted(np.tile(right, (min(step, _SHUFFLES - start), 1)), axis=1)
        as_many += int(((shuffled == given).sum(axis=1) >= correct.sum()).sum())
    return (1 + as_many) / (1 + _SHUFFLES)


def cell_at_chance(cell: pa.Table) -> bool:
    """`at_chance` of one cell's records, with the columns `CHANCE_COLUMNS`.

    Samples of one item are not independent, so only the first one counts.
    """
    cell = cell.filter(pc.equal(cell.column("sample"), 0))
    return at_chance(
        cell.column("correct").to_numpy(zero_copy_only=False).astype(bool),
        cell.column("chance").to_numpy(zero_copy_only=False),
        cell.column("target").to_pylist(),
        cell.column("prediction").to_pylist(),
    )


def items_to_beat_chance(accuracy: float, chance: float) -> int | None:
    """Number of items at which a model of this `accuracy` is found above `chance` with 80% power by the binomial test.

    ``None`` if more than 5,000 are needed, or if `accuracy` is not above `chance`.
    """
    if not 0 < chance < accuracy <= 1:
        return None
    n = np.arange(1, _MAX_ITEMS + 1)
    least = scipy.stats.binom.isf(ALPHA, n, chance) + 1
    enough = scipy.stats.binom.sf(least - 1, n, accuracy) >= _POWER
    # Power oscillates with single items, since counts are integers: from here on it stays above.
    below = np.flatnonzero(~enough)
    n_items = int(n[below[-1]]) + 1 if len(below) else 1
    return n_items if n_items <= _MAX_ITEMS else None


def beats_chance(frame: pd.DataFrame) -> pd.Series[bool]:
    """Rows whose Δμ may be ranked or called significant: `at_chance` is known and false.

    If it is unknown, because the clean model is not measured yet, the row counts as at chance.
    """
    return frame["at_chance"].eq(False).fillna(False).astype(bool)


def known_at_chance(frame: pd.DataFrame) -> pd.Series[bool]:
    """Rows for which the clean model is known to be at chance: `at_chance` is known and true."""
    return frame["at_chance"].eq(True).fillna(False).astype(bool)
