"""Which items of a task are asked, where not all are: drawn by seed, or the first ones."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from lensprune.errors import unknown_name

__all__ = ["DRAWN", "FIRST", "ItemChoice", "draw_order"]

DRAWN, FIRST = "drawn", "first"


@dataclass(frozen=True)
class ItemChoice:
    """How a limit chooses among a task's items.

    ``drawn``: a sample (`draw_order`). ``first``: in the order of the rows, as lm-eval's ``--limit`` takes them.
    """

    order: Literal["drawn", "first"] = "drawn"

    @classmethod
    def parse(cls, text: str) -> ItemChoice:
        """Read an option's text.

        Raises:
            UserError: neither ``drawn`` nor ``first``.
        """
        if text == DRAWN:
            return cls("drawn")
        if text == FIRST:
            return cls("first")
        raise unknown_name("choice of items", text, (DRAWN, FIRST))

    def places(
        self,
        strata: Sequence[Hashable],
        twins: Sequence[Hashable],
        limit: int | None,
        seed: str,
        *,
        random_order: bool = False,
    ) -> list[int]:
        """Places of the chosen items, in the order in which they are asked.

        Where the limit leaves none out, all in the order of the rows. A larger limit keeps what a smaller one took, in
        front.

        Args:
            strata, twins: of each item, see `draw_order`.
            seed: of the draw.
            random_order: the rows come in random order, so the first ones are a sample already.
        """
        n = len(strata)
        if limit is None or limit >= n:
            return list(range(n))
        if self.order == "first" or random_order:
            return list(range(limit))
        return draw_order(strata, twins, Random(seed))[:limit]


def draw_order(strata: Sequence[Hashable], twins: Sequence[Hashable], random: Random) -> list[int]:
    """All places in an order of which every beginning is a sample.

    Twins stand together, so that they are drawn together, but for the last ones, which a limit may part. Each stratum
    has the same share of every beginning as of the whole, to within one item or its twins: a drawn item is put at
    (items of its stratum drawn before it + u) / (items of the stratum), with one random u from 0 to 1 for each
    stratum.

    Args:
        strata: what an item is a sample of, such as its subject.
        twins: near copies have the same one, such as questions about one passage.
    """
    members: dict[Hashable, list[int]] = defaultdict(list)
    for place, own in enumerate(twins):
        members[own].append(place)
    of_stratum: dict[Hashable, list[list[int]]] = defaultdict(list)
    for places in members.values():
        of_stratum[strata[places[0]]].append(places)
    keyed = []
    for drawn in of_stratum.values():
        size, before, offset = sum(map(len, drawn)), 0, random.random()
        # Sorted by random numbers, which Python promises to keep the same for a seed; it does not for `shuffle`.
        for _, places in sorted((random.random(), places) for places in drawn):
            keyed.append(((before + offset) / size, places))
            before += len(places)
    return [place for _, places in sorted(keyed) for place in places]
