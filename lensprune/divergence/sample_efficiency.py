"""Sample efficiency of a score: its ranking from a few items against the losses on all others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pandas as pd
from jaxtyping import Float

from lensprune.ablation.variants import CLEAN
from lensprune.analysis.rank_correlation import spearman_rows
from lensprune.errors import UserError

__all__ = ["SAMPLE_EFFICIENCY_COLUMNS", "SHARES", "changes_of", "sample_efficiency"]

SHARES = (0.1, 0.2, 0.5)
SAMPLE_EFFICIENCY_COLUMNS = ("share", "n_few", "n_rest", "score", "spearman", "spearman_low", "spearman_high")
_SPLITS = 200


def changes_of(records: pd.DataFrame, item_ids: Sequence[str] | None = None) -> pd.DataFrame:
    """correct(variant) − correct(clean) of one (task, protocol)'s records: one row per item, one column per variant.

    Args:
        item_ids: the wanted items, in order; ``None``: all.

    Raises:
        UserError: no clean cell.
    """
    wide = records.pivot(index="item_id", columns="variant", values="correct").astype(float)
    if CLEAN.name not in wide:
        raise UserError("the records have no clean cell, so there is no Δμ")
    changes = wide.drop(columns=CLEAN.name).sub(wide[CLEAN.name], axis=0)
    return changes if item_ids is None else changes.loc[list(item_ids)]


def sample_efficiency(
    scores: Float[np.ndarray, "item variant"],
    changes: Float[np.ndarray, "item variant"],
    shares: Sequence[float] = SHARES,
    *,
    splits: int = _SPLITS,
    seed: int = 0,
) -> pd.DataFrame:
    """Spearman's ρ between a score's means over a few random items and Δμ on *all other* items, over variants.

    For each share of the items, with `splits` random choices: ``score`` is ``fidelity`` (`scores`), ``generate`` (Δμ on
    the same few items), or ``shuffled`` (`scores` with their variants in random order: a negative control). Mean and
    middle 95% over the choices. A choice where a score doesn't vary, as Δμ may on few items, ranks nothing and counts
    as 0. Few and other items are disjoint, so no score profits from the noise of the items on which it is judged.

    Args:
        scores: larger where less is lost; an item without a score has 0 for every variant.
        changes: correct(variant) − correct(clean) on the same items.

    Raises:
        UserError: a share that leaves no item on one side.
    """
    n = len(changes)
    generator = np.random.default_rng(seed)
    rows: list[dict[str, object]] = []
    for share in shares:
        few = round(share * n)
        if not 0 < few < n:
            raise UserError(f"share {share:g} of {n} items leaves no item on one side: use more items")
        kept = [generator.permutation(n) for _ in range(splits)]
        lost = np.stack([changes[order[few:]].mean(axis=0) for order in kept])
        by_score = np.stack([scores[order[:few]].mean(axis=0) for order in kept])
        by_loss = np.stack([changes[order[:few]].mean(axis=0) for order in kept])
        correlations = {
            "fidelity": spearman_rows(by_score, lost),
            "generate": spearman_rows(by_loss, lost),
            "shuffled": spearman_rows(generator.permuted(by_score, axis=1), lost),
        }
        for name, values in correlations.items():
            drawn = np.nan_to_num(values)
            low, high = np.quantile(drawn, [0.025, 0.975])
            numbers = {"spearman": drawn.mean(), "spearman_low": low, "spearman_high": high}
            rows.append({"share": share, "n_few": few, "n_rest": n - few, "score": name, **numbers})
    return cast(Any, pd.DataFrame(rows, columns=list(SAMPLE_EFFICIENCY_COLUMNS)))
