"""Accuracy after removing the first k parts of several orders, or all but the first k, next to random orders."""

from __future__ import annotations

import numpy as np
import pandas as pd

from lensprune.ablation.orders import RANDOM, place_in_order
from lensprune.analysis.summary import summarise_cells
from lensprune.errors import UserError
from lensprune.runs.outcomes import Outcomes

__all__ = ["removal_curve_table", "removal_points"]

_KEYS = ["task", "protocol", "mode", "k"]
_MEASURED = ["n", "chance", "at_chance", "accuracy_clean", "accuracy", "delta", "ci_low", "ci_high"]


def removal_points(outcomes: Outcomes, task: str | None = None, protocol: str | None = None) -> pd.DataFrame:
    """One row per measured (task, protocol, order, seed, k): `mode` (``remove`` or ``keep``), `order`, `seed` (number
    of a random order, −1 for the others), `k`, and from the summary n, chance, at_chance, accuracy_clean, accuracy,
    delta, ci_low and ci_high (of `delta`).

    Raises:
        UserError: no variant of this run is one of `lensprune.ablation.orders`.
    """
    summary = summarise_cells(outcomes, task, protocol)
    places = [place_in_order(str(name)) for name in summary["variant"]]
    facts = pd.DataFrame(
        [(p.mode, p.order, p.index, p.k) for p in places if p is not None], columns=["mode", "order", "seed", "k"]
    )
    if facts.empty:
        raise UserError("this run removes no parts in order: measure removal curves first (lensprune removal)")
    points = summary[[place is not None for place in places]].reset_index(drop=True)
    return pd.concat([points[["task", "protocol"]], facts, points[_MEASURED]], axis=1)


def removal_curve_table(points: pd.DataFrame) -> pd.DataFrame:
    """One row per (task, protocol, mode, order, k), from `removal_points`.

    `accuracy`, `delta` = accuracy − accuracy_clean, and its paired 95% interval `ci_low`, `ci_high`. The random orders
    (`n_orders`) share a row: the means of accuracy and delta, without an interval. Beside each order are theirs at the
    same k: `random_mean`, `random_low`, `random_high` (range of the middle 95% of their accuracies), and `p_value`:
    one-sided, (1 + random orders that do at least as badly) / (1 + random orders); with ``keep``, at least as well.
    """
    drawn = points["order"] == RANDOM
    random = {key: group["accuracy"].to_numpy(float) for key, group in points[drawn].groupby(_KEYS)}
    rows = []
    for (task, protocol, mode, order, k), group in points.groupby(
        ["task", "protocol", "mode", "order", "k"], sort=False
    ):
        first, accuracy = group.iloc[0], float(group["accuracy"].mean())
        row = {"task": task, "protocol": protocol, "mode": mode, "order": order, "k": k, "n": first["n"]}
        row |= {name: first[name] for name in ("chance", "at_chance", "accuracy_clean")}
        row |= {"n_orders": len(group), "accuracy": accuracy, "delta": group["delta"].mean()}
        ranked = order != RANDOM
        row |= {name: first[name] if ranked else np.nan for name in ("ci_low", "ci_high")}
        rows.append({**row, **_beside(random.get((task, protocol, mode, k)), accuracy if ranked else None, str(mode))})
    return pd.DataFrame(rows).astype({"at_chance": "boolean"})


def _beside(random: np.ndarray | None, accuracy: float | None, mode: str) -> dict[str, float]:
    """What random orders do at the same k, and the p-value of an order with this accuracy."""
    if random is None:
        return dict.fromkeys(("random_mean", "random_low", "random_high", "p_value"), np.nan)
    low, high = np.quantile(random, [0.025, 0.975])
    p_value = np.nan
    if accuracy is not None:
        beyond = random <= accuracy if mode == "remove" else random >= accuracy
        p_value = (1 + int(beyond.sum())) / (1 + len(random))
    return {"random_mean": random.mean(), "random_low": low, "random_high": high, "p_value": p_value}
