"""Tracks which rows still share the clean model's state: those with the same prompt and the same generated tokens."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

__all__ = ["SharedHistories", "Split"]

Ints = np.ndarray


class Split(NamedTuple):
    """Histories that begin as copies of others."""

    source: Ints
    target: Ints


class SharedHistories:
    """Numbers distinct (prompt, generated tokens) pairs; a number is freed when no row has it any more.

    `of_row` is −1 before the row's first token. `size` is one more than the highest number in use so far.
    """

    def __init__(self, prompt_of_row: Ints) -> None:
        self._prompt = prompt_of_row
        self.of_row = np.full(len(prompt_of_row), -1)
        self.size = 0

    def advance(self, rows: Ints, tokens: Ints) -> Split:
        """Append a token to each of `rows`, which must be all rows that are still running."""
        started = len(rows) > 0 and self.of_row[rows[0]] >= 0
        before = self.of_row[rows] if started else self._prompt[rows]
        pairs, inverse = np.unique(np.stack([before, tokens]), axis=1, return_inverse=True)
        inverse = inverse.reshape(-1)
        if not started:
            self.of_row[rows] = inverse
            self.size = pairs.shape[1]
            return Split(np.empty(0, int), np.empty(0, int))
        parents = pairs[0]
        # The first continuation of a history keeps its number and place.
        new = np.concatenate([[False], parents[1:] == parents[:-1]])
        numbers = parents.copy()
        free = np.setdiff1d(np.arange(self.size), parents)
        wanted = int(new.sum())
        extra = np.arange(self.size, self.size + max(0, wanted - len(free)))
        numbers[new] = np.concatenate([free, extra])[:wanted]
        self.size += len(extra)
        self.of_row[rows] = numbers[inverse]
        return Split(parents[new], numbers[new])
