"""Rank correlations of many pairs of rows at once, since bootstraps and permutation tests need thousands."""

from __future__ import annotations

import numpy as np
import scipy
from jaxtyping import Float

__all__ = ["kendall_rows", "spearman_rows"]

_BLOCK = 2_000_000


def spearman_rows(a: Float[np.ndarray, "row n"], b: Float[np.ndarray, "row n"]) -> Float[np.ndarray, " row"]:
    """Spearman's ρ of each row of `a` with the same row of `b`, with mean ranks for ties; NaN if one side is constant
    or contains NaN."""
    ranks = [scipy.stats.rankdata(side, axis=1, nan_policy="propagate") for side in (a, b)]
    centred = [side - side.mean(axis=1, keepdims=True) for side in ranks]
    norm = np.sqrt((centred[0] ** 2).sum(axis=1) * (centred[1] ** 2).sum(axis=1))
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation: np.ndarray = np.where(norm > 0, (centred[0] * centred[1]).sum(axis=1) / norm, np.nan)
    return correlation


def kendall_rows(a: Float[np.ndarray, "row n"], b: Float[np.ndarray, "row n"]) -> Float[np.ndarray, " row"]:
    """Kendall's τ_b of each row of `a` with the same row of `b` (Kendall 1945); NaN if one side is constant or contains
    NaN."""
    n = a.shape[1]
    first, second = np.triu_indices(n, 1)
    correlation = np.full(len(a), np.nan)
    step = max(1, _BLOCK // max(1, len(first)))
    for start in range(0, len(a), step):
        span = slice(start, start + step)
        signs = [np.sign(side[span][:, first] - side[span][:, second]) for side in (a, b)]
        norm = np.sqrt((signs[0] ** 2).sum(axis=1) * (signs[1] ** 2).sum(axis=1))
        with np.errstate(invalid="ignore", divide="ignore"):
            correlation[span] = np.where(norm > 0, (signs[0] * signs[1]).sum(axis=1) / norm, np.nan)
    return correlation
