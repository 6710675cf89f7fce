"""A circuit on paper: which head attends where and what it moves, in named parts of the residual stream.

Every residual vector holds one constant coordinate of size `SCALE`, far larger than all else. The norm of the vector is
then the same to one part in a million whatever the circuit writes, so a norm whose weight undoes the division is the
identity, and the whole network is attention and additions that can be worked out by hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["BOS", "SCALE", "SPECIAL", "Blueprint", "Mover", "PlantedHead"]

SCALE = 1024.0
"""The constant coordinate."""

BOS = "<bos>"
SPECIAL = ("<unk>", BOS, "<eos>", "<pad>")


@dataclass(frozen=True)
class Mover:
    """Add `gain` × the attended position's `source` part to the attending position's `target` part.

    `source` ``token`` is the one-hot of the token; ``not_bos`` is 1 on every token but BOS (its target has one
    coordinate). Parts have one coordinate a vocabulary entry, flags one coordinate. With `table` a word of `source` is
    added not to its own coordinate of `target` but to those of other words, each with its weight (times `gain`).
    """

    source: str
    target: str
    gain: float = 1.0
    table: Mapping[str, Mapping[str, float]] | None = None


@dataclass(frozen=True)
class PlantedHead:
    """Where a head attends and what it moves.

    Attention scores (before the softmax) of query position t on key position s:

    - `offset` o: `POSITION_GAIN` × a similarity of position s and t − o that is largest at s = t − o;
    - `match` (query part, key part): `strength` × the dot product of the two parts;
    - `key_tokens`: `strength` × whether the token at s is one of them;
    - on the BOS key: `rest`, the score of attending nowhere. With `only_for` the rest is `STRONG` except for queries
      whose token is one of these, where it is 0; with `unless` (a flag, or a part and a word) it is raised by
      `STRONG` × the flag, or × the word's coordinate.
    """

    movers: Sequence[Mover]
    offset: int | None = None
    match: tuple[str, str] | None = None
    key_tokens: Sequence[str] = ()
    rest: float = 0.0
    only_for: Sequence[str] = ()
    unless: str | tuple[str, str] | None = None
    strength: float = 60.0


@dataclass(frozen=True)
class Blueprint:
    """The circuit of a model: its words, the parts of its residual stream, and its heads.

    Heads that are not named attend to BOS and write nothing. `parts` have one coordinate a word, `flags` one in all;
    the logit of a word is `logit_gain` × its coordinate in the part ``out``.
    """

    words: Sequence[str]
    heads: Mapping[tuple[int, int], PlantedHead]
    parts: Sequence[str]
    flags: Sequence[str] = ()
    n_layers: int = 2
    n_heads: int = 4
    logit_gain: float = 10.0
    vocabulary: Sequence[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "vocabulary", (*SPECIAL, *self.words))
