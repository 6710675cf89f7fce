"""Tokens and FLOPs of a piece of work, by part of the model."""

from __future__ import annotations

import operator
from dataclasses import dataclass

from lensprune.costs.shape import ModelShape

__all__ = ["Cost", "blocks_cost", "last_block_cost", "unembedding_cost"]


@dataclass(frozen=True)
class Cost:
    """What a piece of work runs; costs add up.

    `tokens`: positions through the whole model (a position through half the blocks counts half); `scored`: positions
    that are unembedded. The others are FLOPs of matrix products, two a multiply-add: `attention` (its projections),
    `scores` (between tokens), `mlp`, `unembedding`. `decode_flops` is the share of decode steps, and `passes` how many
    such steps read the weights; `cached`: numbers of keys and values that they read.
    """

    tokens: float = 0.0
    scored: float = 0.0
    attention: float = 0.0
    scores: float = 0.0
    mlp: float = 0.0
    unembedding: float = 0.0
    decode_flops: float = 0.0
    passes: float = 0.0
    cached: float = 0.0

    @property
    def flops(self) -> float:
        return self.attention + self.scores + self.mlp + self.unembedding

    def __add__(self, other: Cost) -> Cost:
        return Cost(*map(operator.add, self._numbers, other._numbers))

    def __mul__(self, times: float) -> Cost:
        return Cost(*(number * times for number in self._numbers))

    @property
    def _numbers(self) -> tuple[float, ...]:
        return tuple(vars(self).values())


def blocks_cost(shape: ModelShape, positions: float, pairs: float, first: int = 0, last: int | None = None) -> Cost:
    """Blocks `first` to `last` (excluded; ``None``: all) on `positions` tokens with `pairs` (query, key) pairs each."""
    layers = shape.layers[first:last]
    return Cost(
        tokens=positions * len(layers) / shape.n_layers,
        attention=2.0 * positions * sum(layer.attention for layer in layers),
        scores=float(pairs) * shape.pair_flops * len(layers),
        mlp=2.0 * positions * sum(layer.mlp for layer in layers),
    )


def last_block_cost(shape: ModelShape, positions: float, wanted: float, pairs: float, *, taken_over: bool) -> Cost:
    """The last block for `wanted` of `positions` tokens: queries, keys and values of all, everything else of these.

    `taken_over`: the attention result is there already, so the other tokens' keys and values are not needed.
    """
    layer = shape.layers[-1]
    # The output projection has as many weights as the query's.
    projected = (
        0.0 if taken_over else 2.0 * positions * (layer.attention - shape.n_heads * shape.d_head * shape.d_model)
    )
    return Cost(
        tokens=wanted / shape.n_layers,
        attention=projected + 2.0 * wanted * layer.attention,
        scores=0.0 if taken_over else float(pairs) * shape.pair_flops,
        mlp=2.0 * wanted * layer.mlp,
    )


def unembedding_cost(shape: ModelShape, positions: float) -> Cost:
    """Logits of `positions` positions."""
    return Cost(scored=positions, unembedding=2.0 * positions * shape.unembedding)
