"""Do two tasks need the same heads? Rank correlation and overlap of the strongest, with permutation tests."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from lensprune.analysis.head_effects import ItemEffects
from lensprune.errors import UserError

__all__ = ["OVERLAP_COLUMNS", "jaccard_top_k", "overlap", "spearman"]

PERMUTATIONS = 10_000
OVERLAP_COLUMNS = (
    "task_a",
    "protocol_a",
    "task_b",
    "protocol_b",
    "n_parts",
    "spearman",
    "spearman_p",
    "k",
    "shared",
    "jaccard",
    "jaccard_expected",
    "jaccard_p",
)


def spearman(
    a: Float[np.ndarray, " part"], b: Float[np.ndarray, " part"], permutations: int = PERMUTATIONS, seed: int = 0
) -> tuple[float, float]:
    """Spearman's ρ of two sets of effects and its two-sided p-value by permuting the parts of one.

    NaN for both where one side is constant.
    """
    ranks_a, ranks_b = stats.rankdata(a), stats.rankdata(b)
    ranks_a, ranks_b = ranks_a - ranks_a.mean(), ranks_b - ranks_b.mean()
    size = float(np.sqrt((ranks_a**2).sum() * (ranks_b**2).sum()))
    if size == 0:
        return np.nan, np.nan
    observed = float(ranks_a @ ranks_b / size)
    generator = np.random.default_rng(seed)
    shuffled = generator.permuted(np.tile(ranks_b, (permutations, 1)), axis=1) @ ranks_a / size
    beyond = int((np.abs(shuffled) >= abs(observed) - 1e-12).sum())
    return observed, (1 + beyond) / (1 + permutations)


def jaccard_top_k(
    a: Float[np.ndarray, " part"], b: Float[np.ndarray, " part"], k: int
) -> tuple[int, float, float, float]:
    """Overlap of the k parts with the largest |effect| on each side.

    Ties at the border go to the earlier part. Under random relabelling of the parts of one side the number shared is
    hypergeometric, so the permutation test is exact.

    Returns:
        Parts shared, Jaccard index, its expectation under relabelling, one-sided p-value.

    Raises:
        UserError: k is not between 1 and the number of parts.
    """
    n = len(a)
    if not 1 <= k <= n:
        raise UserError(f"top {k} is out of range: there are {n} parts")
    shared = len(set(np.argsort(-np.abs(a), kind="stable")[:k]) & set(np.argsort(-np.abs(b), kind="stable")[:k]))
    law = stats.hypergeom(n, k, k)
    counts = np.arange(k + 1)
    expected = float((law.pmf(counts) * counts / (2 * k - counts)).sum())
    return shared, shared / (2 * k - shared), expected, float(law.sf(shared - 1))


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
        shared, jaccard, expected, jaccard_p = jaccard_top_k(a.effects, b.effects, k)
        names = [a.task, a.protocol, b.task, b.protocol, len(a.variants)]
        rows.append([*names, rho, rho_p, k, shared, jaccard, expected, jaccard_p])
    return pd.DataFrame(rows, columns=list(OVERLAP_COLUMNS))
