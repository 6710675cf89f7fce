"""The figures of head functions by kind: what `HeadTable.plot` draws."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from lensprune.errors import UserError, unknown_name
from lensprune.heads.figures.scatter import head_function_scatter
from lensprune.heads.result import HeadTable
from lensprune.heads.scores import SCORES
from lensprune.output.drawing.heatmap import head_heatmaps
from lensprune.results.figures.kinds import RunFigure, unknown_kind

__all__ = ["HEAD_KINDS", "UNIT_SCORES", "head_figure_of"]

UNIT_SCORES = [name for name, score in SCORES.items() if score.range == "0 to 1"]
"""Head functions that are drawn on a scale from 0 to 1."""


def _title(table: HeadTable) -> str:
    return "" if table.run is None else table.run.spec.model


def _map(table: HeadTable, score: str | None) -> RunFigure:
    scores = table.scores if score is None else table.scores[table.scores["score"] == score]
    return RunFigure(
        "heads",
        f"Heatmaps of layers by heads: {scores['score'].nunique()} head functions",
        "What each head does, by layer and head.",
        partial(head_heatmaps, scores, title=_title(table), unit_range=UNIT_SCORES),
        lambda: scores.reset_index(drop=True),
    )


def _scatter(table: HeadTable, score: str | None) -> RunFigure:
    known = list(dict.fromkeys(table.scores["score"]))
    if score is None:
        raise UserError(f"scatter draws one head function: give score, one of {', '.join(known)}")
    joined = table.effects()
    kept = [column for column in joined.columns if column == score or column not in known]
    return RunFigure(
        f"heads_by_{score}",
        f"Scatter plots: change of accuracy without each head against its {score.replace('_', ' ')} score",
        "Δμ without each head against what it does. Dark: q ≤ 0.05; the three largest losses are named.",
        partial(head_function_scatter, joined, score, title=_title(table)),
        lambda: joined[kept],
    )


HEAD_KINDS: dict[str, Callable[[HeadTable, str | None], RunFigure]] = {"map": _map, "scatter": _scatter}
"""What `HeadTable.plot` takes as `kind`."""


def head_figure_of(table: HeadTable, kind: str = "map", score: str | None = None) -> RunFigure:
    """The figure of one kind.

    Raises:
        UserError: an unknown kind or score, or one that this table has nothing for.
    """
    if kind not in HEAD_KINDS:
        raise unknown_kind(kind, HEAD_KINDS)
    known = list(dict.fromkeys(table.scores["score"]))
    if score is not None and score not in known:
        raise unknown_name("head score of this table", score, known)
    return HEAD_KINDS[kind](table, score)
