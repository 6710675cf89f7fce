"""Metrics besides the one that decides `correct`: how a benchmark's authors, or a reader, would judge an answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal
from string import ascii_uppercase

__all__ = ["contains", "last_number", "letter_or_text"]

_NUMBER = re.compile(r"(?<![\w.])[-−]?\$?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?!\w)", re.ASCII)
_SAID = re.compile(r"\b(?:answer|option|choice)\b\W*(?:is|would be|:)?\W*\b([A-Z])\b(?!')", re.IGNORECASE)
_FIRST = re.compile(r"\W*([A-Z])(?=\s*(?:[.,:;)\]*]|\n|$))")


def contains(text: str, answer: str) -> bool:
    """Whether `answer` occurs in `text`, ignoring case: the metric of "Lost in the Middle"."""
    return bool(answer) and answer.lower() in text.lower()


def last_number(text: str) -> Decimal | None:
    """The last number in `text`, ignoring thousands separators and currency signs; `None` if there is none."""
    numbers = _NUMBER.findall(text)
    return Decimal(numbers[-1].replace("−", "-").replace("$", "").replace(",", "")) if numbers else None


def letter_or_text(text: str, options: Sequence[str]) -> int | None:
    """The option that a sentence names: by its letter, else by its text.

    The letter counts if the answer starts with it ("B. because", "**B**") or says so ("the answer is B"). The text
    counts if exactly one option occurs in the answer, ignoring case and options contained in another that occurs.
    """
    said = _FIRST.match(text) or _SAID.search(text)
    if said is not None and (index := ascii_uppercase.index(said[1].upper())) < len(options):
        return index
    lowered = text.lower()
    words = [option.strip().lower() for option in options]
    named_options = [
        index
        for index, word in enumerate(words)
        if len(word) > 1 and re.search(rf"(?<!\w){re.escape(word)}(?!\w)", lowered)
    ]
    named = [i for i in named_options if not any(i != j and words[i] in words[j] for j in named_options)]
    return named[0] if len(named) == 1 else None
