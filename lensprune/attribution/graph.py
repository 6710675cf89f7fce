"""The graph of edges: which components write into the residual stream, and which read from it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool

from lensprune.ablation.components import Head
from lensprune.errors import UserError, unknown_name
from lensprune.models.base import ModelFacts

__all__ = ["Edge", "EdgeGraph", "ReaderGroup"]


class Edge(NamedTuple):
    """From a writer to a reader, by name."""

    source: str
    target: str


@dataclass(frozen=True)
class ReaderGroup:
    """Readers at one hook point: `start` to `stop` (exclusive); each reads its own head's copy."""

    hook: str
    start: int
    stop: int
    per_head: bool
    writers: int


@dataclass(frozen=True)
class EdgeGraph:
    """Writers ``embed``, ``L0.H1``, ``L0.mlp``; readers ``L0.H1.q``, ``L0.KV0.k``, ``L0.KV0.v``, ``L0.mlp``,
    ``logits``.

    Keys and values have one reader per key/value head, named after the head itself (``L0.H1.k``) where every query head
    has its own. A writer has an edge to every reader that comes after it in the residual stream.
    """

    n_layers: int
    n_heads: int
    n_key_value_heads: int
    parallel: bool

    @classmethod
    def of(cls, facts: ModelFacts) -> EdgeGraph:
        """The graph of a model of this shape."""
        return cls(facts.n_layers, facts.n_heads, facts.n_key_value_heads, facts.parallel_attn_mlp)

    @cached_property
    def writers(self) -> tuple[str, ...]:
        """Names of the writers, in order of depth."""
        names = ["embed"]
        for layer in range(self.n_layers):
            names += [Head(layer, head).label for head in range(self.n_heads)] + [f"L{layer}.mlp"]
        return tuple(names)

    @cached_property
    def readers(self) -> tuple[str, ...]:
        """Names of the readers, in order of depth."""
        kv = "H" if self.n_key_value_heads == self.n_heads else "KV"
        names = []
        for layer in range(self.n_layers):
            names += [f"{Head(layer, head).label}.q" for head in range(self.n_heads)]
            names += [f"L{layer}.{kv}{group}.{slot}" for slot in "kv" for group in range(self.n_key_value_heads)]
            names.append(f"L{layer}.mlp")
        return (*names, "logits")

    @cached_property
    def groups(self) -> tuple[ReaderGroup, ...]:
        """Readers by hook point; `writers` counts the writers before it."""
        reader_groups, start = [], 0
        for layer in range(self.n_layers):
            before = self.first_writer(layer)
            for slot, size in (("q", self.n_heads), ("k", self.n_key_value_heads), ("v", self.n_key_value_heads)):
                hook = f"blocks.{layer}.hook_{slot}_input"
                reader_groups.append(ReaderGroup(hook, start, start + size, True, before))
                start += size
            heads = 0 if self.parallel else self.n_heads
            reader_groups.append(ReaderGroup(f"blocks.{layer}.hook_mlp_in", start, start + 1, False, before + heads))
            start += 1
        last = f"blocks.{self.n_layers - 1}.hook_resid_post"
        return (*reader_groups, ReaderGroup(last, start, start + 1, False, len(self.writers)))

    def group_of(self, reader: int) -> ReaderGroup:
        """The group that a reader is in, by index."""
        return next(group for group in self.groups if group.start <= reader < group.stop)

    def first_writer(self, layer: int) -> int:
        """Index of head 0 of a layer among the writers."""
        return 1 + layer * (self.n_heads + 1)

    @cached_property
    def edges(self) -> Bool[torch.Tensor, "writer reader"]:
        """Which (writer, reader) are edges."""
        mask = torch.zeros(len(self.writers), len(self.readers), dtype=torch.bool)
        for group in self.groups:
            mask[: group.writers, group.start : group.stop] = True
        return mask

    @property
    def n_edges(self) -> int:
        """Number of edges."""
        return int(self.edges.sum())

    def edge(self, index: int) -> Edge:
        """Name of an edge by its index in the flattened [writer, reader] matrix."""
        writer, reader = divmod(index, len(self.readers))
        return Edge(self.writers[writer], self.readers[reader])

    def writer(self, name: str) -> int:
        """Index of a writer. Raises `UserError` with the nearest name."""
        if name not in self.writers:
            raise unknown_name("writer", name, self.writers)
        return self.writers.index(name)

    def reader(self, name: str) -> int:
        """Index of a reader. Raises `UserError` with the nearest name."""
        if name not in self.readers:
            raise unknown_name("reader", name, self.readers)
        return self.readers.index(name)

    def mask(self, edges: list[Edge] | list[tuple[str, str]]) -> Bool[torch.Tensor, "writer reader"]:
        """Edges as a matrix. Raises `UserError` for a pair that is not an edge."""
        mask = torch.zeros_like(self.edges)
        for source, target in edges:
            writer, reader = self.writer(source), self.reader(target)
            if not self.edges[writer, reader]:
                raise UserError(f"{source} → {target} is not an edge: {target} does not read what {source} writes")
            mask[writer, reader] = True
        return mask

    @cached_property
    def inputs_of(self) -> tuple[tuple[int, ...], ...]:
        """For every writer, the readers that feed it (none for the embedding)."""
        inputs: list[tuple[int, ...]] = [()]
        size = self.n_heads // self.n_key_value_heads
        per_layer = self.n_heads + 2 * self.n_key_value_heads + 1
        for layer in range(self.n_layers):
            start = layer * per_layer
            for head in range(self.n_heads):
                key = start + self.n_heads + head // size
                inputs.append((start + head, key, key + self.n_key_value_heads))
            inputs.append((start + per_layer - 1,))
        return tuple(inputs)

    def connected(self, kept: Bool[torch.Tensor, "writer reader"]) -> Bool[torch.Tensor, "writer reader"]:
        """The edges of `kept` that lie on a path from the embedding to the logits inside `kept`."""
        edges = np.array((kept & self.edges).tolist(), dtype=bool)
        while True:
            fed = np.asarray(edges.any(axis=0))
            alive = np.array([not inputs or bool(fed[list(inputs)].any()) for inputs in self.inputs_of])
            used = np.asarray(edges.any(axis=1))
            useful = np.zeros(len(self.readers), dtype=bool)
            useful[-1] = True
            for writer, inputs in enumerate(self.inputs_of):
                if used[writer]:
                    useful[list(inputs)] = True
            pruned = edges & alive[:, None] & useful[None]
            if (pruned == edges).all():
                return torch.from_numpy(edges)
            edges = pruned
