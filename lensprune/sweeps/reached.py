"""Whether the positions of a sweep's variants are in its prompts."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from lensprune.ablation.positions import ALL
from lensprune.ablation.variants import Variant
from lensprune.engine.marks import Marks
from lensprune.errors import UserError
from lensprune.models.base import HookedModel
from lensprune.protocols.requests import Request
from lensprune.sweeps.conditions import Condition

__all__ = ["check_positions", "check_reached"]

logger = logging.getLogger("lensprune")


def check_positions(model: HookedModel, conditions: Sequence[Condition], variants: Sequence[Variant]) -> None:
    """`check_reached` for every (task, protocol)."""
    for condition in conditions:
        items = [item.requests for item in condition.items]
        check_reached(model, items, variants, f"task {condition.task.task.name!r}, {condition.protocol}")


def check_reached(
    model: HookedModel, items: Sequence[Sequence[Request]], variants: Sequence[Variant], where: str
) -> None:
    """Warn about positions that no token of some items has, and cut edges that no attention of some items has.

    Args:
        items: the requests of each item.
        where: begins the message.

    Raises:
        UserError: no item has such a token or edge, so the variants would equal the clean model.
    """
    marks = Marks(model, variants)
    places: dict[tuple[str, str | None], str] = {(at, None): f"is at {at!r}" for at in marks.selectors}
    for ablation in (ablation for variant in variants for ablation in variant.ablations):
        if ablation.source is not None and {ablation.at, ablation.source} != {ALL}:
            sees = f"at {ablation.at!r} can attend to one at {ablation.source!r}"
            places[ablation.at, ablation.source] = sees
    items_without: dict[str, int] = {}
    for (at, source), lacked in places.items():
        without = sum(not any(marks.reaches(request, at, source) for request in requests) for requests in items)
        if source is None:
            items_without[at] = without
        elif without in (items_without.get(at), items_without.get(source)):
            # Already reported for its destinations or sources.
            continue
        if without == len(items) > 0:
            raise UserError(
                f"{where}: no token of the {len(items)} items {lacked}, so nothing would change: choose positions "
                "that the prompts have, or that are generated or scored after them"
            )
        if without:
            logger.warning(
                f"{where}: no token of {without} of {len(items)} items {lacked}; on these, what is removed there "
                "changes nothing"
            )
