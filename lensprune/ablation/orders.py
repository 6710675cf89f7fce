"""Variants that remove the first k components of an order, or all but the first k."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from lensprune.ablation.components import Component
from lensprune.ablation.variants import Ablation, Variant
from lensprune.errors import UserError

__all__ = [
    "RANDOM",
    "OrderPlace",
    "keep_first",
    "named_random_orders",
    "place_in_order",
    "random_orders",
    "remove_first",
]

C = TypeVar("C", bound=Component)

RANDOM = "random"
_NAME = re.compile(r"(?P<order>\w+)(?:#(?P<index>\d+))?\.(?P<mode>remove|keep)(?P<k>\d+)\.\w+")


@dataclass(frozen=True)
class OrderPlace:
    """Which variant of an order this is: `mode` and `k` as in `remove_first` and `keep_first`; `index` numbers random
    orders and is −1 for others."""

    order: str
    index: int
    mode: str
    k: int


def place_in_order(name: str) -> OrderPlace | None:
    """The place of a variant that `remove_first` or `keep_first` named; ``None`` for any other name."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    index = -1 if match["index"] is None else int(match["index"])
    return OrderPlace(match["order"], index, match["mode"], int(match["k"]))


def named_random_orders(components: Sequence[C], orders: int, seed: int = 0) -> dict[str, tuple[C, ...]]:
    """`random_orders` by the names that `place_in_order` reads: ``random#0``, ``random#1``, …"""
    return {f"{RANDOM}#{index}": order for index, order in enumerate(random_orders(components, orders, seed))}


def random_orders(components: Sequence[C], orders: int, seed: int = 0) -> list[tuple[C, ...]]:
    """`orders` seeded shuffles; the i-th depends only on `seed`, i and the components."""
    if orders < 1:
        raise UserError(f"orders {orders} is not a number of shuffles: expected 1 or more")
    shuffles = []
    for index in range(orders):
        shuffled = list(components)
        random.Random(f"order {seed} {index}").shuffle(shuffled)
        shuffles.append(tuple(shuffled))
    return shuffles


def remove_first(orders: Mapping[str, Sequence[Component]], counts: Sequence[int], kind: str = "zero") -> list[Variant]:
    """For each order and each k of `counts`, a variant ``{order}.remove{k}.{kind}`` without its first k components.

    Raises:
        UserError: a k that is not between 1 and the length of an order.
    """
    return _variants(orders, counts, kind, "remove", 1)


def keep_first(orders: Mapping[str, Sequence[Component]], counts: Sequence[int], kind: str = "zero") -> list[Variant]:
    """For each order and each k of `counts`, a variant ``{order}.keep{k}.{kind}`` with only its first k components.

    Raises:
        UserError: a k that is negative, or leaves nothing to remove.
    """
    return _variants(orders, counts, kind, "keep", 0)


def _variants(
    orders: Mapping[str, Sequence[Component]], counts: Sequence[int], kind: str, verb: str, least: int
) -> list[Variant]:
    variants = []
    for name, order in orders.items():
        most = len(order) - 1 + least
        for k in counts:
            if not least <= k <= most:
                raise UserError(f"cannot {verb} {k} of {len(order)} components: choose {least} to {most}")
            removed = order[:k] if verb == "remove" else order[k:]
            ablations = tuple(Ablation(component, kind) for component in removed)
            variants.append(Variant(f"{name}.{verb}{k}.{kind}", ablations))
    return variants
