"""A tree of the prefixes that token sequences share, laid out flat.

Every distinct prefix is computed once. Nodes are stored in depth-first order, so the descendants of a node are one
contiguous slice of the flat tokens; attention to a shared prefix is one block of queries against one block of keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from jaxtyping import Int

from lensprune.engine.marks import marks_of, token_of

__all__ = ["Node", "PrefixTree", "build_tree", "chunk_sequences"]

Tokens = tuple[int, ...]


@dataclass
class Node:
    """Tokens `start` to `end` of the flat layout; descendants follow up to `subtree_end`.

    `position` is the position of the first token in its sequence; `parent` an index into the tree's nodes, or −1.
    """

    start: int
    end: int
    subtree_end: int
    position: int
    parent: int

    @property
    def length(self) -> int:
        return self.end - self.start

    @property
    def descendants(self) -> int:
        """Tokens below this node."""
        return self.subtree_end - self.end


@dataclass
class PrefixTree:
    """A forest over distinct sequences: flat tokens, their positions, and for each sequence its node path.

    Tokens may be `marked`: those that differ in their marks are different tokens.
    """

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    last_node: dict[Tokens, int] = field(default_factory=dict)

    def add(self, sequence: Tokens, start: int, parent: int) -> int:
        """Append a node for `sequence` from token `start` on, below node `parent` (−1: none); return its index."""
        begin = len(self.tokens)
        self.tokens.extend(sequence[start:])
        self.positions.extend(range(start, len(sequence)))
        self.nodes.append(Node(begin, len(self.tokens), len(self.tokens), start, parent))
        return len(self.nodes) - 1

    def path(self, sequence: Tokens) -> list[int]:
        """Node indices from the root to the end of `sequence`."""
        path = []
        node = self.last_node[sequence]
        while node >= 0:
            path.append(node)
            node = self.nodes[node].parent
        return path[::-1]

    def flat_positions(self, sequence: Tokens, last: int) -> list[int]:
        """Flat indices of the last `last` tokens of `sequence`, in order."""
        positions: list[int] = []
        node = self.last_node[sequence]
        while len(positions) < last and node >= 0:
            here = self.nodes[node]
            positions.extend(range(here.end - 1, max(here.start, here.end - (last - len(positions))) - 1, -1))
            node = here.parent
        return positions[::-1]

    def __len__(self) -> int:
        return len(self.tokens)

    def input_ids(self, device: str | torch.device) -> Int[torch.Tensor, "1 flat"]:
        return torch.tensor([[token_of(token) for token in self.tokens]], device=device)

    @property
    def marks(self) -> list[int]:
        """Each flat token's marks."""
        return [marks_of(token) for token in self.tokens]

    def position_ids(self, device: str | torch.device) -> Int[torch.Tensor, "1 flat"]:
        return torch.tensor([self.positions], device=device)


def common_prefix(a: Tokens, b: Tokens) -> int:
    """Length of the longest common prefix."""
    size = min(len(a), len(b))
    if a[:size] == b[:size]:
        return size
    low, high = 0, size
    while low < high - 1:
        middle = (low + high) // 2
        if a[:middle] == b[:middle]:
            low = middle
        else:
            high = middle
    return low


def build_tree(sequences: Sequence[Tokens], min_saving: int = 8) -> PrefixTree:
    """Build the tree of distinct non-empty sequences.

    A shared prefix becomes a node if computing it once saves at least `min_saving` tokens; below that its tokens are
    repeated in the children, since each node has a cost.
    """
    ordered = sorted(set(sequences))
    shared = [common_prefix(a, b) for a, b in pairwise(ordered)]
    tree = PrefixTree()

    def close(node: int) -> None:
        tree.nodes[node].subtree_end = len(tree.tokens)

    # Work items are (low, high, depth, parent) or the index of a node whose subtree is complete.
    stack: list[tuple[int, int, int, int] | int] = [(0, len(ordered), 0, -1)] if ordered else []
    while stack:
        work = stack.pop()
        if isinstance(work, int):
            close(work)
            continue
        low, high, depth, parent = work
        first = ordered[low]
        if high - low == 1:
            tree.last_node[first] = parent if len(first) == depth else tree.add(first, depth, parent)
            continue
        common = min(shared[low : high - 1])
        saving = (common - depth) * (high - low - 1)
        if common > depth and saving >= min_saving:
            parent = tree.add(first[:common], depth, parent)
            stack.append(parent)
            depth = common
        if len(first) == common:
            # `first` is a prefix of all the others: it ends at the node just made, or has its tokens repeated.
            tree.last_node[first] = parent if depth == common else tree.add(first, depth, parent)
            low += 1
        groups = []
        begin = low
        for i in range(low, high):
            if i + 1 == high or shared[i] <= common:
                groups.append((begin, i + 1, depth, parent))
                begin = i + 1
        stack.extend(reversed(groups))
    return tree


def chunk_sequences(sequences: Sequence[Tokens], max_tokens: int) -> Iterator[list[Tokens]]:
    """Split distinct sequences, in sorted order, so that each chunk's tree has about `max_tokens` tokens at most."""
    chunk: list[Tokens] = []
    size = 0
    for sequence in sorted(set(sequences)):
        extra = len(sequence) - (common_prefix(chunk[-1], sequence) if chunk else 0)
        if chunk and size + extra > max_tokens:
            yield chunk
            chunk, size, extra = [], 0, len(sequence)
        chunk.append(sequence)
        size += extra
    if chunk:
        yield chunk
