"""Prompts to decode from, in two levels: prefixes that several prompts share, and each prompt's own rest.

With two levels a decode step needs few attention calls: one block of keys per shared prefix, and few padded blocks for
the rests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool, Int

from lensprune.engine.tree import PrefixTree, Tokens, common_prefix

__all__ = ["PromptSet", "SharedPrefix", "length_blocks", "shared_groups"]

MIN_SAVING = 32
"""A prefix that saves fewer tokens than this is not worth separate attention calls."""

MAX_BLOCKS = 3
"""Number of widths to which rests are padded; each needs a separate attention call at every step and layer."""


@dataclass(frozen=True)
class SharedPrefix:
    """Flat tokens `start` to `end` that prompts `first` to `last` (exclusive) begin with."""

    start: int
    end: int
    first: int
    last: int


def shared_groups(ordered: Sequence[Tokens], min_saving: int = MIN_SAVING) -> list[tuple[int, int, int]]:
    """Split sorted distinct sequences into groups (low, high, length of the shared prefix) that save the most tokens.

    The prefix is shorter than every sequence of its group, and 0 where sharing saves less than `min_saving`.
    """
    shared = [common_prefix(a, b) for a, b in pairwise(ordered)]

    def best(low: int, high: int) -> tuple[int, list[tuple[int, int, int]]]:
        if high - low == 1:
            return 0, [(low, high, 0)]
        common = min(shared[low : high - 1])
        # Only the first of sorted sequences can be a prefix of the others.
        length = min(common, len(ordered[low]) - 1)
        saving = length * (high - low - 1)
        cuts = [low, *(i + 1 for i in range(low, high - 1) if shared[i] == common), high]
        parts = [best(*span) for span in pairwise(cuts)]
        apart = sum(part[0] for part in parts)
        if saving >= apart and saving >= min_saving:
            return saving, [(low, high, length)]
        return apart, [group for part in parts for group in part[1]]

    return best(0, len(ordered))[1] if ordered else []


def length_blocks(lengths: Sequence[int], most: int = MAX_BLOCKS) -> list[int]:
    """Assign each length to a block so that at most `most` blocks, each padded to its longest, hold the fewest tokens.

    Blocks are numbered from the shortest lengths up.
    """
    distinct, counts = np.unique(np.asarray(lengths), return_counts=True)
    before = np.concatenate([[0], np.cumsum(counts)])
    # best[i]: tokens, and first length of the last block, of the i shortest distinct lengths in so many blocks.
    best = np.full(len(distinct) + 1, np.inf)
    best[0] = 0
    starts: list[np.ndarray] = []
    for _ in range(min(most, len(distinct))):
        grown, start = best.copy(), np.full(len(best), -1)
        for end in range(1, len(best)):
            padded = best[:end] + (before[end] - before[:end]) * distinct[end - 1]
            if (least := int(padded.argmin())) >= 0 and padded[least] < grown[end]:
                grown[end], start[end] = padded[least], least
        best = grown
        starts.append(start)
    bounds, end = [], len(distinct)
    for start in reversed(starts):
        if end and start[end] >= 0:
            bounds.append(int(end := start[end]))
    firsts = distinct[sorted(bounds)]
    return (np.searchsorted(firsts, np.asarray(lengths), side="right") - 1).tolist()


@dataclass(frozen=True)
class PromptSet:
    """Distinct prompts in sorted order, laid out as a prefix tree of one or two levels.

    `rest` [prompt, width] holds the flat indices of each prompt's tokens after its shared prefix, aligned on the
    right; entries that are not `real` are 0. `block_of` groups prompts with rests of similar length, and `widths` are
    the longest rests of each block. `lengths` are those of whole prompts; `last_token` holds flat indices.
    """

    prompts: tuple[Tokens, ...]
    tree: PrefixTree
    prefixes: tuple[SharedPrefix, ...]
    lengths: Int[torch.Tensor, " prompt"]
    rest: Int[torch.Tensor, "prompt width"]
    real: Bool[torch.Tensor, "prompt width"]
    block_of: Int[np.ndarray, " prompt"]
    widths: tuple[int, ...]
    last_token: Int[torch.Tensor, " prompt"]

    @classmethod
    def of(cls, sequences: Sequence[Tokens]) -> PromptSet:
        ordered = sorted(set(sequences))
        tree = PrefixTree()
        prefixes: list[SharedPrefix] = []
        for low, high, length in shared_groups(ordered):
            parent = -1
            if length:
                parent = tree.add(ordered[low][:length], 0, -1)
                prefixes.append(SharedPrefix(tree.nodes[parent].start, tree.nodes[parent].end, low, high))
            for sequence in ordered[low:high]:
                tree.last_node[sequence] = tree.add(sequence, length, parent)
            if length:
                tree.nodes[parent].subtree_end = len(tree)
        leaves = [tree.nodes[tree.last_node[sequence]] for sequence in ordered]
        width = max(leaf.length for leaf in leaves)
        ends = torch.tensor([leaf.end for leaf in leaves])
        sizes = torch.tensor([leaf.length for leaf in leaves])
        columns = torch.arange(width) - width
        block_of = np.array(length_blocks(sizes.tolist()))
        widths = tuple(int(sizes.numpy()[block_of == block].max()) for block in range(block_of.max() + 1))
        real = columns >= -sizes[:, None]
        return cls(
            prompts=tuple(ordered),
            tree=tree,
            prefixes=tuple(prefixes),
            lengths=torch.tensor([len(sequence) for sequence in ordered]),
            rest=torch.where(real, ends[:, None] + columns, 0),
            real=real,
            block_of=block_of,
            widths=widths,
            last_token=ends - 1,
        )

    @property
    def width(self) -> int:
        return self.rest.shape[1]

    @property
    def shared_tokens(self) -> int:
        """Tokens of all shared prefixes."""
        return sum(prefix.end - prefix.start for prefix in self.prefixes)

    @property
    def shared_columns(self) -> list[slice]:
        """Where each shared prefix is among all of them, one after another."""
        ends = np.cumsum([0, *(prefix.end - prefix.start for prefix in self.prefixes)])
        return [slice(int(start), int(end)) for start, end in pairwise(ends)]

    def __len__(self) -> int:
        return len(self.prompts)
