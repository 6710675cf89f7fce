"""A finished replacement of weights: its outcomes, and views of them."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from lensprune.analysis.summary import summarise
from lensprune.output.tables import of_how_many
from lensprune.replacement.outcomes import ReplacementOutcomes
from lensprune.replacement.ranks import weights_against_effect
from lensprune.replacement.shares import gain_shares
from lensprune.results.item import ItemView, item_of
from lensprune.runs.chance import beats_chance

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["ReplacementRun"]

_ROWS = 10

# Drawing libraries take seconds to import, so the modules that draw are imported when something is drawn.


class ReplacementRun(ReplacementOutcomes):
    """The result of `measure_replacement`: its outcomes, with every table, figure and page as a method.

    Examples:
        >>> replacement.summary()["variant"].tolist()
        ['clean', 'distilled', 'base+L0.mlp', 'distilled-L0.mlp']
        >>> replacement.shares()[["part", "direction", "n"]].to_dict("records")
        [{'part': 'L0.mlp', 'direction': 'forward', 'n': 4}, {'part': 'L0.mlp', 'direction': 'backward', 'n': 4}]
    """

    def summary(self) -> pd.DataFrame:
        """One row per (variant, task, protocol), every variant against the base model."""
        return summarise(self)

    def item(self, item_id: str | int, task: str | None = None, protocol: str | None = None) -> ItemView:
        """One item: prompt, options, and the answers of both models and every exchange; see `lensprune.Run.item`."""
        return item_of(self, item_id, task, protocol)

    def shares(self) -> pd.DataFrame:
        """Each part's share of the gain; see `lensprune.replacement.shares.gain_shares`."""
        return gain_shares(self)

    def weights_against_effect(self) -> pd.DataFrame:
        """Rank correlation of weight change and effect; see `lensprune.replacement.ranks.weights_against_effect`."""
        return weights_against_effect(self.shares())

    def plot(
        self,
        kind: str = "depth",
        task: str | None = None,
        protocol: str | None = None,
        *,
        ax: Axes | Sequence[Axes] | None = None,
    ) -> Axes | list[Axes]:
        """Draw the replacement; returns one Axes, or a list if there are several panels.

        ===========  ==================================================================================
        ``depth``    each part's effect on accuracy against its layer, one line per direction
        ``weights``  the same against ‖ΔW‖, how much the part's weights changed
        ===========  ==================================================================================

        Args:
            ax: draw on these axes, one per panel; ``None`` makes a figure.

        Raises:
            UserError: an unknown kind, a name that is not part of this run, nothing to draw, or another number of axes
                than the figure has panels.
        """
        from lensprune.output.drawing.figure import drawn_axes
        from lensprune.replacement.figure_kinds import replacement_figure_of

        return drawn_axes(replacement_figure_of(self, kind, task, protocol), ax)

    def plot_data(self, kind: str = "depth", task: str | None = None, protocol: str | None = None) -> pd.DataFrame:
        """The tidy table that `plot` draws.

        Raises:
            UserError: as `plot`.
        """
        from lensprune.replacement.figure_kinds import replacement_figure_of

        return replacement_figure_of(self, kind, task, protocol).data()

    def report(self, path: str | Path | None = None) -> Path:
        """Write the replacement as one self-contained HTML page; see
        `lensprune.replacement.page.write_replacement_report`."""
        from lensprune.replacement.page import write_replacement_report

        return write_replacement_report(self, path)

    def save(self) -> Path:
        """Write summary.csv, replacement.csv, figures and what `load` needs into the run's folder.

        Raises:
            UserError: the run is in memory, or its folder can't be written to.
        """
        from lensprune.replacement.outputs import write_delta_outputs

        folder = self.save_pair()
        write_delta_outputs(self, folder)
        return folder

    def __repr__(self) -> str:
        return f"ReplacementRun({self.title}: {len(self.replacements)} replacements, {len(self.conditions)} cells each)"

    def _repr_html_(self) -> str:
        shares = self.shares()
        columns = ["task", "protocol", "direction", "part", "n", "gain", "effect", "ci_low", "ci_high", "share"]
        known: Any = shares[beats_chance(shares)]
        shown = known.sort_values("effect", key=abs, ascending=False, kind="stable").head(_ROWS)[columns]
        rows = shown.to_html(index=False, float_format=lambda x: f"{x:.3f}", escape=True, border=0, na_rep="")
        left = of_how_many(len(shown), len(known), "effects; shares() has all")
        return f"<p><b>{html.escape(repr(self))}</b></p><p>Largest effects</p>{rows}<p>{left}</p>"
