"""Exact tests of paired outcomes: whether items changed more in one direction.

Differences are variant − clean, so a negative one is a loss. Items count as independent: if they come in clusters, pass
the sums over clusters to `lower_tail`, which then randomises the clusters' signs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import scipy
from jaxtyping import Bool, Float, Int

from lensprune.analysis.randomization import integer_law, sizes_of

__all__ = ["ExactTests", "lower_tail", "mcnemar_exact"]


@dataclass(frozen=True)
class ExactTests:
    """p-values with the values that each can take: `attainable[law[i]]`, ascending, for test i.

    Under the null hypothesis P(p ≤ t) is the largest attainable value up to t.
    """

    p: Float[np.ndarray, " test"]
    law: Int[np.ndarray, " test"]
    attainable: tuple[Float[np.ndarray, " value"], ...]


def lower_tail(differences: Float[np.ndarray, "item variant"]) -> ExactTests:
    """One-sided exact p of each variant: P(Σ as low or lower) when each item's difference gets a random sign.

    For outcomes, whose differences are −1, 0 or 1, it is McNemar's exact test against losses; pass −`differences` for
    gains. Gaps between two changes range from −2 to 2. A variant without any difference has p = 1.

    Args:
        differences: integers, per item or summed over clusters of items.
    """
    keys = [tuple(row) for row in sizes_of(differences).tolist()]
    places = {key: place for place, key in enumerate(dict.fromkeys(keys))}
    totals = differences.sum(axis=0).astype(int)
    p = [_tail(key)[0][(_largest(key) + int(total)) // 2] for key, total in zip(keys, totals, strict=True)]
    law = np.array([places[key] for key in keys], int)
    return ExactTests(np.array(p, float), law, tuple(_tail(key)[1] for key in places))


def _largest(counts: tuple[int, ...]) -> int:
    return sum(step * count for step, count in enumerate(counts, 1))


@lru_cache(maxsize=10_000)
def _tail(counts: tuple[int, ...]) -> tuple[Float[np.ndarray, " flipped"], Float[np.ndarray, " value"]]:
    """P(flipped sum ≤ x) for x = 0, 1, …, and its distinct values, for `counts[k − 1]` items of size k."""
    law = integer_law(counts, _largest(counts))
    # p = 0 is impossible; the distribution underflows from about 1,075 items on.
    tail = np.clip(np.cumsum(law), np.finfo(float).tiny, 1.0)
    tail[-1] = 1.0
    return tail, np.unique(tail)


def mcnemar_exact(
    clean: Bool[np.ndarray, " item"], variants: Bool[np.ndarray, "item variant"]
) -> Float[np.ndarray, " variant"]:
    """Two-sided exact McNemar p-value of each variant against clean (binomial test on discordant items).

    Without discordant items, p is 1.
    """
    lost = (clean[:, None] & ~variants).sum(axis=0)
    won = (~clean[:, None] & variants).sum(axis=0)
    return np.minimum(1.0, 2 * scipy.stats.binom.cdf(np.minimum(lost, won), lost + won, 0.5))
