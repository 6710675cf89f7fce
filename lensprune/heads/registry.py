"""Head functions by name: what each means, where it comes from, and which run measures it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from jaxtyping import Float
from torch import Tensor

from lensprune.models.base import HookedModel
from lensprune.registry import Registry

__all__ = ["SCORES", "HeadScore", "Measured", "ScoreOptions", "add_head_scores", "measured_by", "register_head_score"]

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


_SCORES: Registry[HeadScore] = Registry("head score")
SCORES = _SCORES.by_name
"""Every head function by name; each says how it is measured and who defined it."""

F = TypeVar("F", bound=Callable[[HookedModel, ScoreOptions], Float[Tensor, "layer head"]])


def measured_by(
    measure: Callable[[HookedModel, ScoreOptions], Measured], *scores: tuple[str, str, str, str]
) -> list[HeadScore]:
    """Scores (name, definition, source, range) that one run of `measure` gives."""
    return [HeadScore(*score, measure=measure) for score in scores]


def add_head_scores(*scores: HeadScore) -> None:
    """Make head functions known, in this order.

    Raises:
        UserError: a name is taken by another function, or can't be one.
    """
    for score in scores:
        _SCORES.add(score.name, score, score.measure)


def register_head_score(*, range: str, source: str = "", name: str | None = None) -> Callable[[F], F]:
    """Decorator: make a function of a model, and of what it is measured on, a head function::

        @register_head_score(range="0 to 1", source="…")
        def norm(model: HookedModel, options: ScoreOptions) -> Float[Tensor, "layer head"]:
            \"\"\"Share of the layer's …\"\"\"

    It is known by the function's name (or by `name`), its docstring is the definition; `head_scores`, ``lensprune
    heads`` and their figures have it then. A `range` of ``0 to 1`` sets the scale of its map.

    Raises:
        UserError: the name is taken, or can't be one.
    """

    def register(function: F) -> F:
        own = name or function.__name__
        definition = " ".join((function.__doc__ or "").split())
        _SCORES.add(own, HeadScore(own, definition, source, range, lambda *on: {own: function(*on)}), function)
        return function

    return register
