"""Do the parts whose weights changed most bring most? Rank correlation over the replaced parts."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pandas as pd
import scipy

from lensprune.analysis.overlap import spearman
from lensprune.analysis.rank_correlation import spearman_rows

__all__ = ["weights_against_effect"]

_FEWEST_FOR_RANKS = 4
_EQUAL = 1e-9
_MAX_FOR_ALL_ORDERS = 8


def _rank_correlation(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Spearman's ρ and its two-sided p-value over all orders of `y`, or over random ones where there are many.

    Student's t, which is 0 at ρ = ±1 for any number of values, claims more than the orders can give.
    """
    if len(x) > _MAX_FOR_ALL_ORDERS:
        return spearman(x, y)
    orders = np.array(list(permutations(scipy.stats.rankdata(y))))
    found = spearman_rows(np.broadcast_to(x, orders.shape), orders)
    # The first order is that of `y`.
    return float(found[0]), float(np.mean(np.abs(found) >= abs(found[0]) - _EQUAL))


def weights_against_effect(shares: pd.DataFrame) -> pd.DataFrame:
    """Spearman's ρ between a part's weight change and its effect, for each (task, protocol, direction).

    ρ is empty for fewer than four parts, or where either side is constant. `p_value` is two-sided, over all orders
    up to eight parts (so at best 0.08 for four parts), and over 10,000 random ones for more (Phipson & Smyth 2010).

    Args:
        shares: from `lensprune.replacement.shares.gain_shares`.
    """
    rows = []
    for (task, protocol, direction), group in shares.groupby(["task", "protocol", "direction"], sort=False):
        rho = p = float("nan")
        enough = len(group) >= _FEWEST_FOR_RANKS
        if enough and group["weight_change"].nunique() > 1 and group["effect"].nunique() > 1:
            rho, p = _rank_correlation(group["weight_change"].to_numpy(), group["effect"].to_numpy())
        rows.append([task, protocol, direction, len(group), float(rho), float(p)])
    return pd.DataFrame(rows, columns=["task", "protocol", "direction", "n_parts", "spearman", "p_value"])
