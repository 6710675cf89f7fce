"""The figures of head functions by kind: what `HeadTable.plot` draws."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pandas as pd

from lensprune.errors import UserError, unknown_name
from lensprune.heads.figures.scatter import head_function_scatter
from lensprune.heads.scores import SCORES
from lensprune.output.drawing.figure import Figure, unknown_kind
from lensprune.output.drawing.heatmap import head_heatmaps

__all__ = ["HEAD_KINDS", "head_figure_of", "unit_scores"]

Effects = Callable[[], pd.DataFrame]


def unit_scores() -> list[str]:
    """Head functions that are drawn on a scale from 0 to 1."""
    return [name for name, score in SCORES.items() if score.range == "0 to 1"]


def _map(scores: pd.DataFrame, score: str | None, effects: Effects, title: str) -> Figure:
    chosen = scores if score is None else scores[scores["score"] == score]
    return Figure(
        "heads",
        f"Heatmaps of layers by heads: {chosen['score'].nunique()} head functions",
        "What each head does, by layer and head.",
        partial(head_heatmaps, chosen, title=title, unit_range=unit_scores()),
        lambda: chosen.reset_index(drop=True),
    )


def _scatter(scores: pd.DataFrame, score: str | None, effects: Effects, title: str) -> Figure:
    known = list(dict.fromkeys(scores["score"]))
    if score is None:
        raise UserError(f"scatter draws one head function: give score, one of {', '.join(known)}")
    joined = effects()
    kept = [column for column in joined.columns if column == score or column not in known]
    return Figure(
        f"heads_by_{score}",
        f"Scatter plots: change of accuracy without each head against its {score.replace('_', ' ')} score",
        "Δμ without each head against what it does. Diamonds: q ≤ 0.05; the three largest losses are labelled.",
        partial(head_function_scatter, joined, score, title=title),
        lambda: joined[kept],
    )


HEAD_KINDS: dict[str, Callable[[pd.DataFrame, str | None, Effects, str], Figure]] = {"map": _map, "scatter": _scatter}
"""What `HeadTable.plot` takes as `kind`."""


def head_figure_of(
    scores: pd.DataFrame, kind: str = "map", score: str | None = None, *, effects: Effects, title: str = ""
) -> Figure:
    """The figure of one kind.

    Args:
        scores: from `head_scores`: layer, head, score, value.
        effects: returns the table of `scores_with_effects`; called only where a figure needs it.

    Raises:
        UserError: an unknown kind or score, or one without data.
    """
    if kind not in HEAD_KINDS:
        raise unknown_kind(kind, HEAD_KINDS)
    known = list(dict.fromkeys(scores["score"]))
    if score is not None and score not in known:
        raise unknown_name("head score of this table", score, known)
    return HEAD_KINDS[kind](scores, score, effects, title)
