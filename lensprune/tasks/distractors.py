"""Wrong options for open questions, so that they can be scored by likelihood; a question always gets the same ones."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from decimal import Decimal
from random import Random

__all__ = ["number_options", "parse_number", "seeded_by", "shuffled_options"]

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def seeded_by(text: str) -> Random:
    """A random generator that depends only on `text` (sha256), the same on every machine and in every version."""
    return Random(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big"))


def parse_number(text: str) -> Decimal:
    """Parse `text` as a number, ignoring thousands separators, currency and per cent signs.

    Raises:
        ValueError: `text` is not a single number.
    """
    cleaned = text.replace(",", "").replace("$", "").replace("%", "").strip().rstrip(".")
    if not _NUMBER.fullmatch(cleaned):
        raise ValueError(f"{text!r} is not a number")
    return Decimal(cleaned)


def _written(number: Decimal) -> str:
    plain = f"{number:f}"
    return plain.rstrip("0").rstrip(".") if "." in plain else plain


def number_options(question: str, gold: str, n: int = 4) -> tuple[list[str], int]:
    """Make `n` distinct numbers that include `gold`, and its index; a pure function of `question` and `gold`.

    Candidates are: the numbers in the question, gold ± 1 and ± 10 (in units of gold's last decimal), gold with two
    neighbouring digits swapped, and half and twice gold. Those equal to gold, and negative ones
    unless gold is negative, are dropped; a generator seeded by the question draws n − 1 of the rest (padded by
    gold + 2, + 3, … when there are fewer) and gold's place among them.

    Raises:
        ValueError: `gold` is not a number.
    """
    value = parse_number(gold)
    exponent = value.as_tuple().exponent
    unit = Decimal(1).scaleb(exponent) if isinstance(exponent, int) else Decimal(1)
    candidates = [Decimal(number) for number in _NUMBER.findall(question.replace(",", ""))]
    candidates += [value + step * unit for step in (1, -1, 10, -10)]
    digits = _written(abs(value))
    for left in range(len(digits) - 1):
        pair = digits[left : left + 2]
        if pair.isdigit():
            swapped = digits[:left] + pair[::-1] + digits[left + 2 :]
            if not swapped.startswith("0"):
                candidates.append(Decimal(swapped).copy_sign(value))
    candidates += [value * 2, (value / 2).quantize(unit)]
    pool = list(
        dict.fromkeys(_written(number) for number in candidates if number != value and (number >= 0 or value < 0))
    )
    step = 2
    while len(pool) < n - 1:
        extra = _written(value + step * unit)
        if extra not in pool:
            pool.append(extra)
        step += 1
    random = seeded_by(question)
    return _placed(random.sample(pool, n - 1), _written(value), random)


def shuffled_options(key: str, gold: str, others: Sequence[str], n: int = 4) -> tuple[list[str], int]:
    """`gold` and up to n − 1 of `others`, drawn and ordered by a generator seeded with `key`, and gold's index."""
    pool = list(dict.fromkeys(other for other in others if other != gold))
    random = seeded_by(key)
    return _placed(random.sample(pool, min(n - 1, len(pool))), gold, random)


def _placed(wrong: list[str], gold: str, random: Random) -> tuple[list[str], int]:
    place = random.randrange(len(wrong) + 1)
    return [*wrong[:place], gold, *wrong[place:]], place
