"""Variants that remove the first k components of an order, or all but the first k."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TypeVar

from lensprune.ablation.components import Component
from lensprune.ablation.variants import Ablation, Variant
from lensprune.errors import UserError

__all__ = ["keep_first", "random_orders", "remove_first"]

C = TypeVar("C", bound=Component)


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
