"""Attention of a prefix tree's tokens under a sliding window, in few calls of a GPU's kernel.

Blocks of keys that are merged by log-sum-exp don't work here, since the kernel takes one window for all blocks and
counts it from the last key. So each run of neighbours gets its keys in one piece: those before it that its first token
sees, along its path, and its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float

from lensprune.engine.kernels import Packed, flash_packed
from lensprune.engine.tree import PrefixTree

__all__ = ["Run", "WindowedRuns"]

Run = tuple[slice, slice, int]
"""Queries, the same tokens as flat indices, and their node."""

ROOM, LEAST_ROOM = 4, 2**13
"""One call copies the keys of at most `ROOM` times the tree's tokens, or of `LEAST_ROOM` if that is more; a single run
may exceed it."""


class WindowedRuns:
    """Attention of `runs`, which hold the queries in order, each to itself and to what precedes it."""

    def __init__(self, tree: PrefixTree, runs: Sequence[Run], device: str | torch.device) -> None:
        self._tree = tree
        self._runs = runs
        self._device = device
        self._calls: dict[int, list[Packed]] = {}

    def attend(
        self,
        q: Float[torch.Tensor, "query head d_head"],
        k: Float[torch.Tensor, "tok kv_head d_head"],
        v: Float[torch.Tensor, "tok kv_head d_head"],
        scaling: float,
        window: int,
    ) -> Float[torch.Tensor, "query head d_head"] | None:
        """``None`` if there is no kernel."""
        if window not in self._calls:
            self._calls[window] = [Packed.of(blocks, self._device) for blocks in self.blocks(window)]
        parts = []
        for call in self._calls[window]:
            part = flash_packed(q, k, v, call, scaling, causal=True, window=window)
            if part is None:
                return None
            parts.append(part[0])
        return torch.cat(parts)

    def blocks(self, window: int) -> Iterator[list[tuple[slice, list[slice]]]]:
        """For each call: runs' queries, and their keys as flat spans in the order of positions."""
        room = max(ROOM * len(self._tree), LEAST_ROOM)
        call: list[tuple[slice, list[slice]]] = []
        size = 0
        for queries, own, node in self._runs:
            keys = [*self._before(node, own.start, window - 1), own]
            needed = sum(span.stop - span.start for span in keys)
            if call and size + needed > room:
                yield call
                call, size = [], 0
            call.append((queries, keys))
            size += needed
        yield call

    def _before(self, node: int, end: int, most: int) -> list[slice]:
        """Spans of the last `most` tokens before flat token `end` of a node, along its path."""
        spans: list[slice] = []
        while most > 0 and node >= 0:
            start = max(self._tree.nodes[node].start, end - most)
            if start < end:
                spans.append(slice(start, end))
                most -= end - start
            node = self._tree.nodes[node].parent
            end = self._tree.nodes[node].end
        return spans[::-1]
