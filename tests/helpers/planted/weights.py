"""From a blueprint to projection matrices, the same for both architectures up to how positions are known."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from tests.helpers.planted.blueprint import BOS, SCALE, Blueprint, PlantedHead

__all__ = ["D_HEAD", "POSITION_GAIN", "REST", "STRONG", "HeadWeights", "Layout", "head_weights"]

D_HEAD = 64
POSITION_GAIN = 100.0
REST = 30.0
STRONG = 3000.0
"""Score of a rest that no other score comes near."""


@dataclass(frozen=True)
class Layout:
    """Start of each part in the residual stream; `content` lists the head dimensions free of positions."""

    blueprint: Blueprint
    starts: Mapping[str, int]
    width: int
    content: tuple[int, ...]

    @classmethod
    def of(cls, blueprint: Blueprint, content: tuple[int, ...], extra: Mapping[str, int] | None = None) -> Layout:
        words = len(blueprint.vocabulary)
        sizes = {"constant": 1, "token": words, **dict.fromkeys(blueprint.parts, words)}
        sizes |= dict.fromkeys(blueprint.flags, 1)
        sizes |= extra or {}
        starts, total = {}, 0
        for name, size in sizes.items():
            starts[name] = total
            total += size
        # Transformers asks for a width that the heads divide, head_dim or not.
        return cls(blueprint, starts, -(-total // blueprint.n_heads) * blueprint.n_heads, content)

    def row(self, part: str, word: str | None = None) -> int:
        """Coordinate of a word in a part (or of a part of one coordinate)."""
        return self.starts[part] + (0 if word is None else self.blueprint.vocabulary.index(word))

    def rows(self, part: str) -> range:
        return range(self.starts[part], self.starts[part] + len(self.blueprint.vocabulary))


@dataclass(frozen=True)
class HeadWeights:
    """Matrices that act on the residual vector from the right; attention scores are q · k without any scaling."""

    query: torch.Tensor  # [width, D_HEAD]
    key: torch.Tensor  # [width, D_HEAD]
    value: torch.Tensor  # [width, D_HEAD]
    output: torch.Tensor  # [D_HEAD, width]


def head_weights(layout: Layout, head: PlantedHead | None) -> HeadWeights:
    """The matrices of one head, without its `offset`, which each architecture adds in its own way.

    Content dimensions of queries and keys, in order: one for the rest on BOS, one for `key_tokens`, one a word for
    `match`. Dimensions of values: one a coordinate moved.
    """
    width = layout.width
    query, key = torch.zeros(width, D_HEAD), torch.zeros(width, D_HEAD)
    value, output = torch.zeros(width, D_HEAD), torch.zeros(D_HEAD, width)
    constant = layout.row("constant")
    rest_dim, flag_dim, *match_dims = layout.content
    key[layout.row("token", BOS), rest_dim] = 1.0
    if head is None:
        query[constant, rest_dim] = STRONG / SCALE
        return HeadWeights(query, key, value, output)
    rest = STRONG if head.only_for else head.rest
    query[constant, rest_dim] = rest / SCALE
    for word in head.only_for:
        query[layout.row("token", word), rest_dim] = -rest
    if head.unless is not None:
        flag = (head.unless,) if isinstance(head.unless, str) else head.unless
        query[layout.row(*flag), rest_dim] = STRONG
    if head.key_tokens:
        query[constant, flag_dim] = head.strength / SCALE
        for word in head.key_tokens:
            key[layout.row("token", word), flag_dim] = 1.0
    if head.match is not None:
        for dim, asked, held in zip(match_dims, layout.rows(head.match[0]), layout.rows(head.match[1]), strict=False):
            query[asked, dim] = head.strength
            key[held, dim] = 1.0
    dim = 0
    for mover in head.movers:
        if mover.source == "not_bos":
            value[constant, dim] = 1 / SCALE
            value[layout.row("token", BOS), dim] = -1.0
            output[dim, layout.row(mover.target)] = mover.gain
            dim += 1
            continue
        if mover.table is not None:
            for word, weights in mover.table.items():
                value[layout.row(mover.source, word), dim] = 1.0
                for other, weight in weights.items():
                    output[dim, layout.row(mover.target, other)] = mover.gain * weight
                dim += 1
            continue
        for read, written in zip(layout.rows(mover.source), layout.rows(mover.target), strict=True):
            value[read, dim] = 1.0
            output[dim, written] = mover.gain
            dim += 1
    if dim > D_HEAD:
        raise AssertionError(f"{dim} coordinates moved by a head of {D_HEAD}")
    return HeadWeights(query, key, value, output)


def rotary_frequencies(theta: float) -> list[float]:
    """Angle per position of each rotary pair (i, i + D_HEAD/2)."""
    return [theta ** (-2 * i / D_HEAD) for i in range(D_HEAD // 2)]


def offset_angle(offset: int, frequency: float) -> tuple[float, float]:
    """A key pair that, rotated with its position, agrees best with a query (1, 0) `offset` positions later."""
    return math.cos(offset * frequency), math.sin(offset * frequency)
