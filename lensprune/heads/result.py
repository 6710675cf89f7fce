"""Head functions together with the loss from removing each head, with figures."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from lensprune.errors import UserError
from lensprune.heads.table import scores_with_effects, top_heads
from lensprune.output.drawing.figure import Figure, drawn_axes
from lensprune.results.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["HeadTable"]


@dataclass(frozen=True)
class HeadTable:
    """Head functions of a model, and a sweep over its heads if there is one.

    Args:
        scores: from `head_scores`: layer, head, score, value.
        run: a sweep whose variants remove single heads of that model.
    """

    scores: pd.DataFrame
    run: Run | None = None

    def effects(self) -> pd.DataFrame:
        """The scores joined with the effects of the sweep; see `scores_with_effects`.

        Raises:
            UserError: there is no sweep, or it removed no single head of this model.
        """
        if self.run is None:
            raise UserError("there is no sweep over heads: give HeadTable a run")
        return scores_with_effects(self.scores, self.run)

    def plot(
        self, kind: str = "map", score: str | None = None, *, ax: Axes | Sequence[Axes] | None = None
    ) -> Axes | list[Axes]:
        """Draw the table; returns one Axes, or a list if there are several panels.

        ===========  ==================================================================================
        ``map``      layers × heads, a panel per head function (or the one of `score`)
        ``scatter``  Δμ of each removed head against the head function `score`, a panel per (task, protocol)
        ===========  ==================================================================================

        Args:
            ax: draw on these axes, one per panel; ``None`` makes a figure.

        Raises:
            UserError: an unknown kind or score, ``scatter`` without a score or a sweep, nothing to draw, or another
                number of axes than the figure has panels.
        """
        return drawn_axes(self._figure(kind, score), ax)

    def plot_data(self, kind: str = "map", score: str | None = None) -> pd.DataFrame:
        """Return the tidy table that `plot` draws.

        Raises:
            UserError: as `plot`.
        """
        return self._figure(kind, score).data()

    def _figure(self, kind: str, score: str | None) -> Figure:
        from lensprune.heads.figures.kinds import head_figure_of

        title = "" if self.run is None else self.run.spec.model
        return head_figure_of(self.scores, kind, score, effects=self.effects, title=title)

    def __repr__(self) -> str:
        beside = "" if self.run is None else f", beside {self.run!r}"
        heads = len(self.scores[["layer", "head"]].drop_duplicates())
        return f"HeadTable({heads} heads, {self.scores['score'].nunique()} scores{beside})"

    def _repr_html_(self) -> str:
        best = top_heads(self.scores, 3)
        named = best.assign(head="L" + best["layer"].astype(str) + ".H" + best["head"].astype(str))
        shown = named[["score", "head", "value"]].to_html(index=False, float_format=lambda x: f"{x:.3f}", border=0)
        return f"<p><b>{html.escape(repr(self))}</b></p><p>Highest three of each score</p>{shown}"
