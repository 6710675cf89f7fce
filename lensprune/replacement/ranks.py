"""Rank correlation of weight change and effect over the replaced parts."""

from __future__ import annotations

import pandas as pd

from lensprune.analysis.overlap import spearman

__all__ = ["weights_against_effect"]

_FEWEST_FOR_RANKS = 4


def weights_against_effect(shares: pd.DataFrame) -> pd.DataFrame:
    """Spearman's ρ between a part's weight change and its effect, for each (task, protocol, direction).

    ρ is empty for fewer than four parts, or where either side is constant. `p_value` is two-sided, over all orders
    up to eight parts (so at best 0.08 for four parts), and over 10,000 random ones for more; see `spearman`.

    Args:
        shares: from `lensprune.replacement.shares.gain_shares`.
    """
    rows = []
    for (task, protocol, direction), group in shares.groupby(["task", "protocol", "direction"], sort=False):
        rho = p = float("nan")
        if len(group) >= _FEWEST_FOR_RANKS:
            rho, p = spearman(group["weight_change"].to_numpy(), group["effect"].to_numpy())
        rows.append([task, protocol, direction, len(group), rho, p])
    return pd.DataFrame(rows, columns=["task", "protocol", "direction", "n_parts", "spearman", "p_value"])
