"""The reliability of a ranking by Δμ, and the composition of the gap between protocols."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from lensprune.ablation.variants import CLEAN
from lensprune.analysis.rank_correlation import spearman_rows
from lensprune.divergence.sample_efficiency import changes_of
from lensprune.errors import UserError
from lensprune.protocols.base import Failure

__all__ = ["GAP_COLUMNS", "failure_gap", "split_half", "split_half_of"]

FAILURES: tuple[str, ...] = tuple(kind for kind in get_args(Failure) if kind != "none")
GAP_COLUMNS = ("task", "variant", "layer", "delta", "delta_other", "gap", *FAILURES)
_SPLITS = 200


def split_half(changes: Float[np.ndarray, "item variant"], splits: int = _SPLITS, seed: int = 0) -> float:
    """Reliability of the ranking of variants by Δμ: its expected correlation with another sample of as many items.

    Spearman's ρ between Δμ on two random halves of the items, mean over `splits` splits, stepped up to the whole number
    of items by 2ρ / (1 + ρ) (Spearman 1910; Brown 1910). A score without error can be expected to
    correlate with Δμ by the root of it. NaN with fewer than four items or where halves have no ranking.
    """
    n = len(changes)
    if n < 4:
        return float("nan")
    generator = np.random.default_rng(seed)
    orders = [generator.permutation(n) for _ in range(splits)]
    halves = [
        np.stack([changes[order[part]].mean(axis=0) for order in orders])
        for part in (slice(None, n // 2), slice(n // 2, None))
    ]
    correlations = spearman_rows(*halves)
    if np.isnan(correlations).all():
        return float("nan")
    mean = float(np.nanmean(correlations))
    return 2 * mean / (1 + mean) if mean > 0 else 0.0


def split_half_of(records: pd.DataFrame) -> float:
    """`split_half` of the records of one (task, protocol)."""
    return split_half(changes_of(records).to_numpy())


def failure_gap(records: pd.DataFrame, protocol: str = "generate", other: str = "continuation") -> pd.DataFrame:
    """Δμ under `protocol` by kind of failure, beside Δμ under `other`, for every (task, variant) that has both.

    An item is right or fails in one of the kinds `FAILURES`, so Δμ = −Σ (share of the kind under the variant − under
    the clean model), and the columns named after kinds (each −1 × that difference) sum to ``delta``. ``gap`` =
    ``delta`` − ``delta_other``: negative where `protocol` loses more.

    Args:
        records: of a run: variant, layer, task, protocol, item_id, correct, failure.

    Raises:
        UserError: a protocol that the records don't have.
    """
    for wanted in (protocol, other):
        if wanted not in set(records["protocol"]):
            raise UserError(f"the records have no protocol {wanted!r}: they have {', '.join(set(records['protocol']))}")
    rows = []
    for task, of_task in records.groupby("task", sort=False):
        generated, compared = (of_task[of_task["protocol"] == name] for name in (protocol, other))
        clean = _shares(generated[generated["variant"] == CLEAN.name])
        other_clean = compared.loc[compared["variant"] == CLEAN.name, "correct"].mean()
        for variant, cell in generated.groupby("variant", sort=False):
            matching = compared.loc[compared["variant"] == variant, "correct"]
            if variant == CLEAN.name or matching.empty:
                continue
            lost = clean - _shares(cell)
            delta = float(lost.sum())
            delta_other = float(matching.mean() - other_clean)
            rows.append((task, variant, cell["layer"].iloc[0], delta, delta_other, delta - delta_other, *lost))
    return pd.DataFrame(rows, columns=list(GAP_COLUMNS)).astype({"layer": "Int64"})


def _shares(cell: pd.DataFrame) -> Float[np.ndarray, " kind"]:
    wrong: Bool[np.ndarray, " item"] = ~cell["correct"].to_numpy(bool)
    failure = cell["failure"].to_numpy()
    return np.array([(wrong & (failure == kind)).mean() for kind in FAILURES])
