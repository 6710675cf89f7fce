"""Which items of a task to use if not all: a sample drawn by seed, the first ones, or named ones."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from lensprune.errors import UserError, first_line, nearest, unknown_name
from lensprune.paths import nearest_path, usable_path

__all__ = ["DRAWN", "FIRST", "ItemChoice", "draw_order"]

DRAWN, FIRST = "drawn", "first"
_MAX_ROWS = 1_000_000


@dataclass(frozen=True)
class ItemChoice:
    """How a limit chooses among a task's items.

    ``drawn``: a sample (`draw_order`). ``first``: in row order, like lm-eval's ``--limit``. `offset`: how many items at
    the start of that order to skip. `listed`: row indices or ids; only these items are used, in row order.
    """

    order: Literal["drawn", "first"] = "drawn"
    in_file_order: bool = True
    """Keep row order if the limit leaves no item out; without it, items are in drawn order even then."""
    offset: int = 0
    listed: frozenset[int] | frozenset[str] | None = None

    @classmethod
    def parse(cls, text: str) -> ItemChoice:
        """Parse an option's text: ``drawn`` or ``first``, optionally with an offset like ``drawn+40``; row indices
        from 0 like ``17,40-60``; or ``@FILE`` with ids, one per line.

        Raises:
            UserError: anything else, an empty range, or a file that can't be read or contains no id.
        """
        if text.startswith("@"):
            return cls("first", listed=_ids(text[1:]))
        if text[:1].isdecimal():
            return cls("first", listed=_places(text))
        order, plus, offset = text.partition("+")
        if (plus and not offset.isdecimal()) or order not in (DRAWN, FIRST):
            raise unknown_name("choice of items", text, (DRAWN, FIRST, f"{DRAWN}+40", "17,40-60", "@FILE"))
        return cls("drawn" if order == DRAWN else "first", offset=int(offset or 0))

    def rows_needed(self, limit: int | None) -> int | None:
        """How many rows a task that generates them must return; ``None``: its default number.

        The ids of generated rows are their places.
        """
        places = [int(listed) for listed in self.listed or () if isinstance(listed, int) or listed.isdecimal()]
        if places:
            return min(max(places) + 1, _MAX_ROWS)
        return None if limit is None else limit + self.offset

    def named(self, ids: Sequence[str], where: str) -> set[int] | None:
        """Indices of the `listed` items among those with these ids; ``None`` if no items are listed.

        Raises:
            UserError: an index or id that the task lacks.
        """
        if self.listed is None:
            return None
        known: dict[Hashable, int] = {item_id: place for place, item_id in enumerate(ids)}
        if any(isinstance(wanted, int) for wanted in self.listed):
            known = {place: place for place in range(len(ids))}
        for wanted in self.listed:
            if wanted not in known:
                if isinstance(wanted, int):
                    raise UserError(f"{where} has items 0 to {len(ids) - 1}, not {wanted}")
                close = nearest(wanted, ids, 1) or ids[:1]
                raise UserError(f"{where} has no item {wanted!r}: the nearest of {len(ids)} ids is {close[0]}")
        return {known[wanted] for wanted in self.listed}

    def places(
        self,
        strata: Sequence[Hashable],
        twins: Sequence[Hashable],
        limit: int | None,
        seed: str,
        *,
        random_order: bool = False,
    ) -> list[int]:
        """Indices of the chosen items, in the order in which they are used.

        If the limit leaves no item out, all of them in row order (see `in_file_order`). A larger limit starts with the
        items of a smaller one.

        Args:
            strata, twins: one per item, see `draw_order`.
            seed: seed of the draw.
            random_order: the rows come in random order, so the first ones already are a sample.
        """
        n, begin = len(strata), self.offset
        if begin and begin >= n:
            raise UserError(f"items {self.order}+{begin} leaves none of the {n} items: expected an offset below {n}")
        if begin == 0 and (limit is None or limit >= n) and self.in_file_order:
            return list(range(n))
        end = n if limit is None else min(n, begin + limit)
        if self.order == "first" or random_order:
            return list(range(begin, end))
        return draw_order(strata, twins, Random(seed))[begin:end]


def _places(text: str) -> frozenset[int]:
    places: set[int] = set()
    for part in map(str.strip, text.split(",")):
        low, dash, high = (piece.strip() for piece in part.partition("-"))
        if not low.isdecimal() or (dash and not high.isdecimal()):
            where = f"at {part!r}" if part else "at an empty entry"
            raise UserError(f"cannot read items {text!r} {where}: write indices and ranges like 17,40-60")
        first, last = int(low), int(high) if dash else int(low)
        if last < first:
            raise UserError(f"items {part} runs backwards: did you mean {last}-{first}?")
        if last >= _MAX_ROWS:
            raise UserError(f"items {part} is out of range: expected indices below {_MAX_ROWS}")
        places.update(range(first, last + 1))
    return frozenset(places)


def _ids(path: str) -> frozenset[str]:
    if not path.strip():
        raise UserError("items '@' names no file: write its path after the @, like @hard.txt")
    try:
        place = usable_path(path, "file of items")
        text = place.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"file of items {path} does not exist{nearest_path(place)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"file of items {path} can't be read: {first_line(error)}") from None
    ids = frozenset(line.strip() for line in text.splitlines() if line.strip())
    if not ids:
        raise UserError(f"file of items {path} contains no id: expected one per line")
    return ids


def draw_order(strata: Sequence[Hashable], twins: Sequence[Hashable], random: Random) -> list[int]:
    """All indices in an order in which every prefix is a stratified sample.

    Twins are adjacent, so that they are drawn together, except that a limit may split the last ones. Each stratum has
    the same share of every prefix as of the whole, to within one item or its twins: a drawn item is placed at (items of
    its stratum drawn before it + u) / (items of the stratum), with one random u from 0 to 1 per stratum.

    Args:
        strata: each item's stratum, such as its subject.
        twins: a label per item, equal for near copies such as questions about one passage.
    """
    members: dict[Hashable, list[int]] = defaultdict(list)
    for place, twin in enumerate(twins):
        members[twin].append(place)
    of_stratum: dict[Hashable, list[list[int]]] = defaultdict(list)
    for places in members.values():
        of_stratum[strata[places[0]]].append(places)
    keyed = []
    for drawn in of_stratum.values():
        size, before, offset = sum(map(len, drawn)), 0, random.random()
        # Sorted by random numbers, which Python guarantees to be stable for a seed; it does not guarantee that for
        # `shuffle`.
        for _, places in sorted((random.random(), places) for places in drawn):
            keyed.append(((before + offset) / size, places))
            before += len(places)
    return [place for _, places in sorted(keyed) for place in places]
