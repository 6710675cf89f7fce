"""Rows for key-value retrieval, generated from a seed."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from random import Random

from lensprune.errors import UserError, unknown_name
from lensprune.tasks.bundled.words import NOUNS
from lensprune.tasks.distractors import seeded_by

__all__ = ["KEY_KINDS", "balanced_position", "generate_kv_rows"]

KEY_KINDS = ("word", "uuid")


def _uuids(random: Random, n: int) -> list[str]:
    return [str(uuid.UUID(int=random.getrandbits(128), version=4)) for _ in range(n)]


def _word_pairs(random: Random, pairs: int) -> list[list[str]]:
    values = random.sample(range(1000, 10000), pairs)
    return [[word, str(value)] for word, value in zip(random.sample(NOUNS, pairs), values, strict=True)]


def _uuid_pairs(random: Random, pairs: int) -> list[list[str]]:
    return [list(pair) for pair in zip(_uuids(random, pairs), _uuids(random, pairs), strict=True)]


_PAIRS: dict[str, Callable[[Random, int], list[list[str]]]] = {"word": _word_pairs, "uuid": _uuid_pairs}


def balanced_position(index: int, pairs: int) -> int:
    """Position of the gold pair of the `index`-th item: the van der Corput sequence in base 2, scaled to `pairs`.

    The first n items cover the list evenly for any n, so a `limit` keeps the balance.
    """
    fraction, weight = 0.0, 0.5
    while index:
        fraction += weight * (index & 1)
        index >>= 1
        weight /= 2
    return int(fraction * pairs)


def generate_kv_rows(n: int, pairs: int, keys: str = "word", seed: int = 0) -> list[dict[str, object]]:
    """Rows in the schema of "Lost in the Middle": ``ordered_kv_records``, ``key`` and ``value``.

    Keys are distinct within a row, and so are values. The gold pair's position is balanced over the list
    (`balanced_position` of the row's index). A row depends on its index and the arguments other than `n`, so a longer
    list starts with the shorter one.

    Args:
        n: number of rows.
        pairs: key-value pairs per row.
        keys: ``word``: common nouns with four-digit numbers; ``uuid``: random UUIDs (version 4) on both sides.
        seed: any whole number.

    Raises:
        UserError: unknown kind of keys, no rows or pairs requested, or more pairs than there are words.
    """
    if keys not in _PAIRS:
        raise unknown_name("kind of keys", keys, KEY_KINDS)
    if n < 1 or pairs < 1:
        raise UserError(f"key-value rows: rows and pairs must be positive, not {n} and {pairs}")
    if keys == "word" and pairs > len(NOUNS):
        raise UserError(
            f"key-value rows: {pairs} pairs need as many word keys, but there are {len(NOUNS)}: use keys=uuid"
        )
    rows: list[dict[str, object]] = []
    for index in range(n):
        records = _PAIRS[keys](seeded_by(f"kv {keys} {pairs} {seed} {index}"), pairs)
        key, value = records[balanced_position(index, pairs)]
        rows.append({"ordered_kv_records": records, "key": key, "value": value})
    return rows
