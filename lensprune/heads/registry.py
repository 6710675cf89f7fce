"""Head functions by name: what each means, where it comes from, and which run measures it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from lensprune.models.base import HookedModel

__all__ = ["HeadScore", "Measured", "ScoreOptions", "measured_by"]

Measured = Mapping[str, Float[Tensor, "layer head"]]


@dataclass(frozen=True)
class ScoreOptions:
    """What the measurements are made on.

    `sequences`, `length`: how many sequences of random tokens, and tokens of the half that is repeated (``None``: up to
    50, as far as context and vocabulary allow). `texts`: prompts for the attention sink, entropy and distance; ``None``
    takes the random sequences. `limit`, `shots`: of the tasks behind retrieval and arithmetic scores.
    """

    sequences: int = 8
    length: int | None = None
    texts: Sequence[str] | None = None
    limit: int = 20
    shots: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class HeadScore:
    """A head function. `definition` says how it is measured, `source` who defined it, `range` its values."""

    name: str
    definition: str
    source: str
    range: str
    measure: Callable[[HookedModel, ScoreOptions], Measured]


def measured_by(
    measure: Callable[[HookedModel, ScoreOptions], Measured], *scores: tuple[str, str, str, str]
) -> list[HeadScore]:
    """Scores (name, definition, source, range) that one run of `measure` gives."""
    return [HeadScore(*score, measure=measure) for score in scores]
