"""Head functions by name: definition, source and measurement of each."""

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
    """Inputs for the measurements.

    `sequences`, `length`: number of random token sequences, and tokens in the repeated half (``None``: up to 50, as far
    as context and vocabulary allow). `texts`: prompts for the attention sink, entropy and distance; ``None`` takes the
    random sequences. `limit`, `shots`: items and few-shot examples for retrieval and arithmetic scores.
    """

    sequences: int = 8
    length: int | None = None
    texts: Sequence[str] | None = None
    limit: int = 20
    shots: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class HeadScore:
    """A head function. `definition`: how it is measured; `source`: who defined it; `range`: its possible values."""

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
    """Scores (name, definition, source, range) that one call of `measure` returns."""
    return [HeadScore(*score, measure=measure) for score in scores]


def add_head_scores(*scores: HeadScore) -> None:
    """Register head functions, in this order.

    Raises:
        UserError: a name is taken by another function, or contains characters other than letters, digits, _ and -.
    """
    for score in scores:
        _SCORES.add(score.name, score, score.measure)


def register_head_score(*, range: str, source: str = "", name: str | None = None) -> Callable[[F], F]:
    """Register the decorated function of a model and `ScoreOptions` as a head function.

    The function returns one number per [layer, head], and its docstring is the definition. `head_scores`, ``lensprune
    heads`` and their figures then include it.

    Args:
        range: range of the values, in words; ``0 to 1`` sets the scale of its map.
        source: who defined it.
        name: name of the score; ``None`` takes the function's name.

    Raises:
        UserError: the name is taken, or contains characters other than letters, digits, _ and -.

    Examples:
        >>> import torch
        >>> @lp.register_head_score(range="0 to 1")
        ... def depth_share(model, options):
        ...     '''The head's depth, as a share of the model's.'''
        ...     depth = torch.arange(model.facts.n_layers) / (model.facts.n_layers - 1)
        ...     return depth[:, None].expand(-1, model.facts.n_heads)
        >>> float(lp.head_scores(model, "depth_share")["value"].max())
        1.0
    """

    def register(function: F) -> F:
        score_name = name or function.__name__
        definition = " ".join((function.__doc__ or "").split())
        _SCORES.add(
            score_name,
            HeadScore(score_name, definition, source, range, lambda *on: {score_name: function(*on)}),
            function,
        )
        return function

    return register
