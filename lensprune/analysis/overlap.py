"""Compare the heads that two tasks need: rank correlation and overlap of the strongest, with permutation tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd
import scipy
from jaxtyping import Bool, Float, Int

from lensprune.analysis.head_effects import ItemEffects
from lensprune.errors import UserError

__all__ = ["OVERLAP_COLUMNS", "jaccard_top_k", "on_disjoint_items", "overlap", "relabellings", "spearman"]

PERMUTATIONS = 10_000
"""Random orders per p-value."""
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


def relabellings(layers: Sequence[int], draws: int = PERMUTATIONS, seed: int = 0) -> Int[np.ndarray, "draw part"]:
    """Permutations of one side's effects over the parts that preserve the depth profile's smoothness.

    Neighbouring layers have similar effects, so two unrelated profiles correlate more often than shuffled ones. Layers
    are shifted cyclically and mirrored (a reflection also preserves autocorrelation), and the parts within each layer
    are shuffled. With one part per layer these are exactly 2 × layers permutations, the first of which is the identity;
    otherwise `draws` random ones. Parts of a single layer, or of layers with different numbers of parts, are shuffled
    freely.

    Args:
        layers: layer of each part.
    """
    generator = np.random.default_rng(seed)
    _, counts = np.unique(layers, return_counts=True)
    depth, width = len(counts), int(counts[0])
    if depth == 1 or (counts != width).any():
        return generator.permuted(np.tile(np.arange(len(layers)), (draws, 1)), axis=1)
    grid = np.argsort(layers, kind="stable").reshape(depth, width)
    turns = np.stack(
        [turned for shift in range(depth) for turned in (np.roll(grid, shift, 0), np.roll(grid[::-1], shift, 0))]
    )
    if width > 1:
        turns = generator.permuted(turns[generator.integers(0, len(turns), draws)], axis=2)
    dealt = np.empty((len(turns), len(layers)), int)
    dealt[:, grid.ravel()] = turns.reshape(len(turns), -1)
    return dealt


def _share(beyond: Bool[np.ndarray, " draw"], dealt: Int[np.ndarray, "draw part"]) -> float:
    """p-value: the share of permutations that are as extreme; if they are a random sample, the observed one is
    added."""
    whole = bool((dealt[0] == np.arange(dealt.shape[1])).all())
    return float(beyond.mean()) if whole else float((1 + beyond.sum()) / (1 + len(beyond)))


def spearman(
    a: Float[np.ndarray, " part"],
    b: Float[np.ndarray, " part"],
    layers: Sequence[int] | None = None,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> tuple[float, float]:
    """Spearman's ρ of two sets of effects with a two-sided permutation p-value: over `relabellings` if `layers` gives
    the parts' layers, else over all orders.

    For up to eight parts all orders are used, so the p-value is exact (at best 2/n!); for more, `permutations` random
    ones (Phipson & Smyth 2010). The p-value by Student's t, 0 at ρ = ±1 for any n, would be smaller than a permutation
    test allows. Both are NaN if one side is constant.
    """
    ranks_a, ranks_b = scipy.stats.rankdata(a), scipy.stats.rankdata(b)
    ranks_a, ranks_b = ranks_a - ranks_a.mean(), ranks_b - ranks_b.mean()
    size = float(np.sqrt((ranks_a**2).sum() * (ranks_b**2).sum()))
    if size == 0:
        return np.nan, np.nan
    observed = float(ranks_a @ ranks_b / size)
    if layers is not None:
        dealt = relabellings(layers, permutations, seed)
        return observed, _share(np.abs(ranks_b[dealt] @ ranks_a / size) >= abs(observed) - 1e-12, dealt)
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
    return observed, float(test.pvalue)


def jaccard_top_k(
    a: Float[np.ndarray, " part"], b: Float[np.ndarray, " part"], k: int
) -> tuple[int, int, int, float, float, float]:
    """Overlap of the k parts with the largest |effect| on each side.

    Parts that tie with the (k + 1)-th are left out, so a side may have fewer than k: breaking ties by order would fill
    both sides with the same parts. Under random relabelling of one side's parts, the number shared is hypergeometric,
    so the permutation test is exact.

    Returns:
        Parts of a, parts of b, parts shared, Jaccard index, its expectation under relabelling, one-sided p-value. The
        last three are NaN if a side has no part left.

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


def on_disjoint_items(
    a: ItemEffects, b: ItemEffects, seed: int = 0
) -> tuple[Float[np.ndarray, " part"], Float[np.ndarray, " part"]]:
    """Mean effects of both sides; if they share items (two protocols, or closed and open book), on disjoint halves of
    the items (whole clusters, if there are any).

    On the same items both sides share sampling noise, which makes identical parts look correlated.
    """
    names = [(effects.closed_book or effects.task).partition("[")[0] for effects in (a, b)]
    shared = sorted(set(a.item_ids) & set(b.item_ids)) if names[0] == names[1] else []
    if len(shared) < 2:
        return a.effects, b.effects
    clusters = dict(zip(a.item_ids, a.clusters if a.clusters is not None else range(len(a.item_ids)), strict=True))
    units = sorted({int(clusters[item]) for item in shared})
    if len(units) < 2:
        clusters, units = {item: place for place, item in enumerate(shared)}, list(range(len(shared)))
    first = set(np.random.default_rng(seed).permutation(units)[: (len(units) + 1) // 2].tolist())
    halves = [
        ranking.differences[[item in clusters and (clusters[item] in first) == half for item in ranking.item_ids]]
        for ranking, half in ((a, True), (b, False))
    ]
    return halves[0].mean(axis=0), halves[1].mean(axis=0)


def overlap(effects: Sequence[ItemEffects], k: int = 10, seed: int = 0) -> pd.DataFrame:
    """One row per pair of (task, protocol) with the same removed parts.

    Two protocols of one task, or its open- and closed-book versions, are ranked on disjoint halves of the items
    (`on_disjoint_items`); p-values and the expected Jaccard index come from `relabellings`.

    Raises:
        UserError: fewer than two, parts that differ, or a `k` out of range.
    """
    if len(effects) < 2:
        raise UserError("overlap compares two tasks or protocols, but there is only one")
    rows = []
    for a, b in combinations(effects, 2):
        if a.variants != b.variants:
            raise UserError(f"{a.task} under {a.protocol} and {b.task} under {b.protocol} removed different parts")
        of_a, of_b = on_disjoint_items(a, b, seed)
        rho, rho_p = spearman(of_a, of_b, a.layers, seed=seed)
        top_a, top_b, shared, jaccard, expected, jaccard_p = jaccard_top_k(of_a, of_b, k)
        # Parts of one layer are shuffled freely, so the distribution is known.
        if top_a and top_b and len(set(a.layers)) > 1:
            expected, jaccard_p = _shared_when_dealt(of_a, of_b, k, relabellings(a.layers, seed=seed))
        names = [a.task, a.protocol, b.task, b.protocol, len(a.variants)]
        rows.append([*names, rho, rho_p, k, top_a, top_b, shared, jaccard, expected, jaccard_p])
    return pd.DataFrame(rows, columns=list(OVERLAP_COLUMNS))


def _shared_when_dealt(
    a: Float[np.ndarray, " part"], b: Float[np.ndarray, " part"], k: int, dealt: Int[np.ndarray, "draw part"]
) -> tuple[float, float]:
    """Expected Jaccard index, and one-sided p of the number shared."""
    top_here, top_there = (np.isin(np.arange(len(a)), list(_strictly_top(side, k))) for side in (a, b))
    counts = (top_there[dealt] & top_here).sum(axis=1)
    indices = counts / (top_here.sum() + top_there.sum() - counts)
    return float(indices.mean()), _share(counts >= (top_here & top_there).sum(), dealt)
