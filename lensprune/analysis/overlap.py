"""Do two tasks need the same heads? Rank correlation and overlap of the strongest, with permutation tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd
import scipy
from jaxtyping import Float

from lensprune.analysis.head_effects import ItemEffects
from lensprune.errors import UserError

__all__ = ["OVERLAP_COLUMNS", "jaccard_top_k", "overlap", "spearman"]

PERMUTATIONS = 10_000
"""Random orders behind a p-value."""
_ALL_ORDERS_UP_TO = 8
OVERLAP_COLUMNS = (
    "task_a",
    "protocol_a",
    "task_b",
    "protocol_b",
    "n_parts",
    "spearman",
    "spearman_p",
    "k",
    "top_a",
    "top_b",
    "shared",
    "jaccard",
    "jaccard_expected",
    "jaccard_p",
)


def spearman(
    a: Float[np.ndarray, " part"], b: Float[np.ndarray, " part"], permutations: int = PERMUTATIONS, seed: int = 0
) -> tuple[float, float]:
    """Spearman's ρ of two sets of effects and its two-sided p-value by permuting the parts of one.

    Up to eight parts all orders count, so the p-value is exact (at best 2/n!); for more, `permutations` random ones
    (Phipson & Smyth 2010). Student's t, which is 0 at ρ = ±1 for any number of values, claims more than the orders can
    give. NaN for both where one side is constant.
    """
    ranks_a, ranks_b = scipy.stats.rankdata(a), scipy.stats.rankdata(b)
    ranks_a, ranks_b = ranks_a - ranks_a.mean(), ranks_b - ranks_b.mean()
    size = float(np.sqrt((ranks_a**2).sum() * (ranks_b**2).sum()))
    if size == 0:
        return np.nan, np.nan
    test = scipy.stats.permutation_test(
        (ranks_b,),
        lambda ranks, axis: np.abs((ranks * ranks_a).sum(axis=axis)),
        permutation_type="pairings",
        alternative="greater",
        n_resamples=max(permutations, math.factorial(_ALL_ORDERS_UP_TO))
        if len(a) <= _ALL_ORDERS_UP_TO
        else permutations,
        random_state=seed,
    )
    return float(ranks_a @ ranks_b / size), float(test.pvalue)


def jaccard_top_k(
    a: Float[np.ndarray, " part"], b: Float[np.ndarray, " part"], k: int
) -> tuple[int, int, int, float, float, float]:
    """Overlap of the k parts with the largest |effect| on each side.

    Parts that tie with the (k + 1)-th are left out, so a side may have fewer than k: were ties broken by order, both
    sides would fill up with the same parts. Under random relabelling of the parts of one side the number shared is
    hypergeometric, so the permutation test is exact.

    Returns:
        Parts of a, parts of b, parts shared, Jaccard index, its expectation under relabelling, one-sided p-value. The
        last three are NaN where a side has no part left.

    Raises:
        UserError: k is not between 1 and the number of parts.
    """
    n = len(a)
    if not 1 <= k <= n:
        raise UserError(f"top {k} is out of range: there are {n} parts")
    top_a, top_b = _strictly_top(a, k), _strictly_top(b, k)
    of_a, of_b, shared = len(top_a), len(top_b), len(top_a & top_b)
    if not of_a or not of_b:
        return of_a, of_b, 0, np.nan, np.nan, np.nan
    law = scipy.stats.hypergeom(n, of_a, of_b)
    counts = np.arange(min(of_a, of_b) + 1)
    expected = float((law.pmf(counts) * counts / (of_a + of_b - counts)).sum())
    return of_a, of_b, shared, shared / (of_a + of_b - shared), expected, float(law.sf(shared - 1))


def _strictly_top(effects: Float[np.ndarray, " part"], k: int) -> set[int]:
    sizes = np.abs(effects)
    border = np.sort(sizes)[-(k + 1)] if k < len(sizes) else -np.inf
    return set(np.flatnonzero(sizes > border).tolist())


def overlap(effects: Sequence[ItemEffects], k: int = 10, seed: int = 0) -> pd.DataFrame:
    """One row for each pair of (task, protocol) whose same parts were removed.

    Raises:
        UserError: fewer than two, parts that differ, or a `k` out of range.
    """
    if len(effects) < 2:
        raise UserError("overlap compares two tasks or protocols, and there is only one")
    rows = []
    for a, b in combinations(effects, 2):
        if a.variants != b.variants:
            raise UserError(f"{a.task} under {a.protocol} and {b.task} under {b.protocol} removed different parts")
        rho, rho_p = spearman(a.effects, b.effects, seed=seed)
        names = [a.task, a.protocol, b.task, b.protocol, len(a.variants)]
        rows.append([*names, rho, rho_p, k, *jaccard_top_k(a.effects, b.effects, k)])
    return pd.DataFrame(rows, columns=list(OVERLAP_COLUMNS))
