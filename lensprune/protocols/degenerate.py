"""Detect degenerate generations: empty texts, and texts that end in repetition."""

from __future__ import annotations

import zlib

__all__ = ["LOOP_TESTS", "compressed_ratio", "is_degenerate", "is_looping"]

LOOP_TESTS: tuple[tuple[int, int, float], ...] = ((200, 80, 0.35), (800, 400, 0.2))
"""``(window, floor, ratio)`` in bytes of UTF-8: the last `window` bytes, if there are at least `floor`, count as a loop
if they deflate to less than `ratio` of their length. Human GSM8K solutions stay above 0.59 in the first window and 0.46
at 300 bytes; a repeated sentence of 40 letters reaches 0.35 after 2.5 repetitions. The second window catches loops
whose period is too long for the first."""


def compressed_ratio(data: bytes) -> float:
    """Length of `data` after raw deflate at the highest level, divided by its original length."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return len(deflate.compress(data) + deflate.flush()) / len(data)


def is_looping(text: str) -> bool:
    """Whether `text` ends in repetition, by `LOOP_TESTS`.

    Only the end is tested: a model that breaks down starts well and then stays in its loop. Texts shorter than the
    lowest floor never count as looping: a short answer may well repeat a word.
    """
    data = text.strip().encode()
    return any(len(data) >= floor and compressed_ratio(data[-window:]) < ratio for window, floor, ratio in LOOP_TESTS)


def is_degenerate(text: str) -> bool:
    """Whether `text` is empty (except for white space) or looping."""
    return not text.strip() or is_looping(text)
