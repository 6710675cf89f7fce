"""Accuracy as heads are removed: most important first, deepest first, or in random order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Unpack

import numpy as np
import pandas as pd

from lensprune.ablation.components import Head
from lensprune.ablation.orders import keep_first, random_orders, remove_first
from lensprune.errors import UserError, unknown_name
from lensprune.models.adapt import as_hooked_model
from lensprune.models.base import AnyModel
from lensprune.results.run import Run
from lensprune.sweeps.options import SweepArguments
from lensprune.sweeps.run import sweep

__all__ = ["RemovalCurves", "importance_of", "removal_curves"]

ORDERS = ("important_first", "unimportant_first", "shallow_first", "deep_first", "random")


def importance_of(
    run: Run, task: str | None = None, protocol: str | None = None, measure: str = "correct"
) -> pd.DataFrame:
    """Return each head's importance in a run: layer, head, value = −(mean change of `measure`).

    Several (task, protocol) pairs are averaged. Curves on the items by which the heads were ranked are optimistic, so
    rank on different items (another seed, or items beyond the limit).

    Raises:
        UserError: a name that is not part of the run, or the run removed no heads.
    """
    effects = run.effects(task, protocol, measure=measure)
    frames = [
        pd.DataFrame({"layer": cell_effects.layers, "head": cell_effects.heads, "value": -cell_effects.effects})
        for cell_effects in effects
    ]
    return pd.concat(frames).groupby(["layer", "head"])[["value"]].mean().reset_index()


@dataclass(frozen=True)
class RemovalCurves:
    """Removal curves: the run and its points.

    `table`: one row per (task, protocol, order, seed, k): `seed` numbers the random orders and is −1 for the others;
    accuracy, accuracy_clean, delta, at_chance. k counts the heads removed (1 or more) or kept (0 or more); the clean
    model has no row, since each row contains its accuracy.
    """

    mode: Literal["remove", "keep"]
    table: pd.DataFrame
    run: Run

    def summary(self) -> pd.DataFrame:
        """Compare each order with the random ones: task, protocol, order, k, accuracy, random_mean, random_low,
        random_high (range of the middle 95% of random orders), and p_value: one-sided, the share of random orders that
        do at least as badly (``keep``: at least as well), (1 + such orders) / (1 + random orders)."""
        keys = ["task", "protocol", "k"]
        chance = {key: group["accuracy"].to_numpy() for key, group in self._random().groupby(keys)}
        rows = []
        for row in self.table[self.table["order"] != "random"].to_dict("records"):
            random = chance[row["task"], row["protocol"], row["k"]]
            beyond = random <= row["accuracy"] if self.mode == "remove" else random >= row["accuracy"]
            low, high = np.quantile(random, [0.025, 0.975])
            p_value = (1 + int(beyond.sum())) / (1 + len(random))
            values = [row["task"], row["protocol"], row["order"], row["k"], row["accuracy"]]
            rows.append([*values, random.mean(), low, high, p_value])
        columns = [
            "task", "protocol", "order", "k", "accuracy", "random_mean", "random_low", "random_high", "p_value",
        ]  # fmt: skip
        return pd.DataFrame(rows, columns=columns)

    def _random(self) -> pd.DataFrame:
        return self.table[self.table["order"] == "random"]


def removal_curves(
    model: AnyModel,
    importance: pd.DataFrame | Mapping[str, pd.DataFrame],
    tasks: Sequence[str] | str,
    protocols: Sequence[str] | str = ("default",),
    *,
    counts: Sequence[int],
    mode: Literal["remove", "keep"] = "remove",
    orders: Sequence[str] = ("important_first", "deep_first", "shallow_first", "random"),
    random_seeds: int = 20,
    seed: int = 0,
    ablation: str = "zero",
    **options: Unpack[SweepArguments],
) -> RemovalCurves:
    """Remove 1, 2, … heads in several orders, or keep only that many, and measure accuracy.

    Args:
        importance: columns layer, head, value; a larger value is more important (`importance_of`, or one score of
            `head_scores`). Only these heads are ever removed. Several rankings of the same heads by name are compared:
            each is an order of that name, most important first, in place of ``important_first`` and
            ``unimportant_first``.
        counts: how many heads to remove (1 or more), or to keep (0 or more, but not all).
        mode: ``remove`` the first k of an order, or ``keep`` only the first k.
        orders: any of ``important_first``, ``unimportant_first``, ``shallow_first``, ``deep_first``, ``random``. Ties
            go to the lower layer and head.
        random_seeds: number of random orders, at least 20, so that p-values can fall below 0.05.
        ablation: how a head is removed.
        options: options of `lensprune.sweep` (limit, shots, seed, out, …).

    Raises:
        UserError: an unknown order or mode, too few random orders, a count out of range, a column that is missing,
            rankings of different heads, or one with an order's name.
    """
    if mode not in ("remove", "keep"):
        raise unknown_name("mode", str(mode), ["remove", "keep"])
    for name in orders:
        if name not in ORDERS:
            raise unknown_name("order", name, ORDERS)
    if "random" not in orders:
        raise UserError("orders need 'random' to compare with: add it")
    if random_seeds < 20:
        raise UserError(
            f"random_seeds {random_seeds} is too few to distinguish an order from chance: expected 20 or more"
        )
    hooked = as_hooked_model(model)
    named = _orders(importance, orders, random_seeds, seed)
    build = remove_first if mode == "remove" else keep_first
    run = sweep(hooked, tasks, protocols, build(named, counts, ablation), seed=seed, **options)
    summary = run.summary()
    places = {
        f"{name}.{mode}{k}.{ablation}": (name.split("#")[0], int(name.split("#")[1]) if "#" in name else -1, k)
        for name in named
        for k in counts
    }
    facts = pd.DataFrame(
        [places.get(str(variant), ("clean", -1, 0)) for variant in summary["variant"]],
        columns=["order", "seed", "k"],
        index=summary.index,
    )
    columns = ["accuracy", "accuracy_clean", "delta", "at_chance"]
    table = pd.concat([summary[["task", "protocol"]], facts, summary[columns]], axis=1)
    table = table[table["order"] != "clean"].reset_index(drop=True)
    return RemovalCurves(mode, table, run)


def _orders(
    importance: pd.DataFrame | Mapping[str, pd.DataFrame], orders: Sequence[str], random_seeds: int, seed: int
) -> dict[str, tuple[Head, ...]]:
    alone = isinstance(importance, pd.DataFrame)
    rankings = {"important_first": importance} if isinstance(importance, pd.DataFrame) else dict(importance)
    if not rankings:
        raise UserError("no importance given: name at least one ranking")
    for name in rankings:
        if not alone and (name in ORDERS or not name.replace("_", "").isalnum()):
            raise UserError(f"ranking {name!r}: expected letters, digits and _, and none of {', '.join(ORDERS)}")
    ranked = {name: _checked(frame) for name, frame in rankings.items()}
    by_place, *others = (_heads(frame) for frame in ranked.values())
    if any(other != by_place for other in others):
        raise UserError("rankings of different heads can't be compared: give every ranking the same heads")
    order_of = {} if alone else {name: _heads(_sorted(frame)) for name, frame in ranked.items()}
    for name in orders:
        if name == "random":
            shuffles = random_orders(by_place, random_seeds, seed)
            order_of |= {f"random#{index}": order for index, order in enumerate(shuffles)}
        elif not name.endswith("important_first"):
            order_of[name] = by_place if name == "shallow_first" else by_place[::-1]
        elif alone:
            order_of[name] = _heads(_sorted(ranked["important_first"], up=name == "unimportant_first"))
    return order_of


def _checked(importance: pd.DataFrame) -> pd.DataFrame:
    """By layer and head."""
    for column in ("layer", "head", "value"):
        if column not in importance:
            raise unknown_name("column of importance", column, importance.columns)
    if importance["value"].isna().any():
        raise UserError("an importance is NaN: leave such heads out")
    if importance.duplicated(["layer", "head"]).any():
        raise UserError("a head has two importances: give one score, not several")
    return importance.sort_values(["layer", "head"])


def _sorted(ranked: pd.DataFrame, *, up: bool = False) -> pd.DataFrame:
    return ranked.sort_values("value", ascending=up, kind="stable")


def _heads(frame: pd.DataFrame) -> tuple[Head, ...]:
    return tuple(Head(int(layer), int(head)) for layer, head in zip(frame["layer"], frame["head"], strict=True))
