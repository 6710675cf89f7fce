"""Accuracy as heads are removed: most important first, deepest first, or in random order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Unpack

import pandas as pd

from lensprune.ablation.components import Head
from lensprune.ablation.orders import RANDOM, keep_first, named_random_orders, remove_first
from lensprune.analysis.removal import removal_curve_table, removal_points
from lensprune.errors import UserError, unknown_name
from lensprune.heads.rankings import Rankings, shared_items
from lensprune.models.base import ModelOrName
from lensprune.output.tables import frame_json
from lensprune.results.analyses import analysis_named
from lensprune.results.run import Run
from lensprune.results.text import analysis_text
from lensprune.sweeps.options import SweepArguments
from lensprune.sweeps.run import sweep

__all__ = ["RemovalCurves", "removal_curves", "removal_report"]

ORDERS = ("important_first", "unimportant_first", "shallow_first", "deep_first", RANDOM)
MIN_RANDOM = 20
"""Random orders, so that p-values can fall below 0.05."""


@dataclass(frozen=True)
class RemovalCurves:
    """Removal curves: the run and its points.

    `table`: one row per (task, protocol, order, seed, k), from `lensprune.analysis.removal.removal_points`: `seed`
    numbers the random orders and is −1 for the others. k counts the heads removed (1 or more) or kept (0 or more); the
    clean model has no row, since each row contains its accuracy.
    """

    mode: Literal["remove", "keep"]
    table: pd.DataFrame
    run: Run

    def summary(self) -> pd.DataFrame:
        """Each order next to the random ones, with intervals: see `lensprune.analysis.removal.removal_curve_table`."""
        return removal_curve_table(self.table)


def removal_curves(
    model: ModelOrName,
    importance: pd.DataFrame | Mapping[str, pd.DataFrame],
    tasks: Sequence[str] | str,
    protocols: Sequence[str] | str = ("default",),
    *,
    counts: Sequence[int],
    mode: Literal["remove", "keep"] = "remove",
    orders: Sequence[str] = ("important_first", "deep_first", "shallow_first", "random"),
    random_seeds: int = MIN_RANDOM,
    seed: int = 0,
    ablation: str = "zero",
    dtype: str | None = None,
    device: str | None = None,
    n_devices: int | None = None,
    bos: str | None = None,
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
        random_seeds: number of random orders, at least 20, so that p-values can fall below 0.05. Another number keeps
            the first ones.
        seed: of the random orders, and of the sweep (items, examples).
        ablation: how a head is removed.
        dtype, device, n_devices, bos: for `load_model`, when `model` is a name.
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
    if RANDOM not in orders:
        raise UserError("orders need 'random' to compare with: add it")
    if random_seeds < MIN_RANDOM:
        raise UserError(
            f"{random_seeds} random orders are too few to distinguish an order from chance: expected {MIN_RANDOM} or "
            "more"
        )
    named = _orders(importance, orders, random_seeds, seed)
    variants = (remove_first if mode == "remove" else keep_first)(named, counts, ablation)
    run = sweep(
        model,
        tasks,
        protocols,
        variants,
        seed=seed,
        dtype=dtype,
        device=device,
        n_devices=n_devices,
        bos=bos,
        **options,
    )
    return RemovalCurves(mode, removal_points(run), run)


def removal_report(curves: RemovalCurves, rankings: Rankings | None = None, *, as_json: bool = False) -> str:
    """The table of the curves, and where its files are; with `rankings`, which of them used the same items.

    Args:
        as_json: the table alone, with all its columns, as JSON.
    """
    table = curves.summary()
    if as_json:
        return frame_json(table)
    parts = [analysis_text(curves.run, analysis_named("removal"), table)]
    for name, (shared, of) in ({} if rankings is None else shared_items(curves.run, rankings)).items():
        parts.append(
            f"ranking {name} comes from {shared} of these {of} items: its curve is optimistic; use another --seed"
        )
    return "\n\n".join(parts)


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
        if name == RANDOM:
            order_of |= named_random_orders(by_place, random_seeds, seed)
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
