"""A run: its outcomes, and what they say. Every method is one function of the outcomes."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from lensprune.ablation.variants import CLEAN
from lensprune.analysis import depth, head_effects, protocol_gap, screening
from lensprune.analysis.concentration import TOP, concentration_table
from lensprune.analysis.critical import critical_layers
from lensprune.analysis.head_effects import ItemEffects
from lensprune.analysis.head_groups import heads_and_groups
from lensprune.analysis.multiplicity import LEVEL
from lensprune.analysis.overlap import overlap
from lensprune.analysis.room import ACCURACY_MARGIN
from lensprune.analysis.signatures import signatures
from lensprune.analysis.summary import summarise
from lensprune.runs.chance import beats_chance, known_at_chance
from lensprune.runs.outcomes import Outcomes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Run"]

# Drawing libraries take seconds to import, so the modules that draw are imported when something is drawn.


class Run(Outcomes):
    """What a sweep returns: its `Outcomes`, in memory or on disk, with every analysis, figure and page as a method."""

    def summary(self) -> pd.DataFrame:
        """One row per (variant, task, protocol), clean first; see `lensprune.analysis.summary.summarise`."""
        return summarise(self)

    def critical_layers(self, task: str | None = None, protocol: str | None = None, q: float = LEVEL) -> pd.DataFrame:
        """Layers whose removal lowers accuracy; see `lensprune.analysis.critical.critical_layers`."""
        return critical_layers(self, task, protocol, q)

    def depth_bands(self, task: str | None = None, protocol: str | None = None) -> pd.DataFrame:
        """Mean Δμ over the first 30% of layers, the middle and the last 30%; see `lensprune.analysis.depth`."""
        return depth.depth_bands(self, task, protocol)

    def protocol_gap(self, task: str | None = None) -> pd.DataFrame:
        """Δμ under one protocol minus Δμ under another; see `lensprune.analysis.protocol_gap.protocol_gap`."""
        return protocol_gap.protocol_gap(self, task)

    def open_book_gap(self, closed: str, opened: str) -> pd.DataFrame:
        """Δμ of the open-book task minus that of the closed one; see `lensprune.analysis.protocol_gap.task_gap`."""
        return protocol_gap.task_gap(self, closed, opened)

    def signatures(self, task: str | None = None, *, accuracy_margin: float = ACCURACY_MARGIN) -> pd.DataFrame:
        """The paper's failure signatures, each seen, not seen or not resolvable; see `lensprune.analysis.signatures`.

        Args:
            accuracy_margin: accuracy below which a loss counts as none.
        """
        return signatures(self, task, accuracy_margin=accuracy_margin)

    def effects(
        self,
        task: str | None = None,
        protocol: str | None = None,
        *,
        component: str = "head",
        ablation: str | None = None,
        measure: str = "correct",
    ) -> list[ItemEffects]:
        """What each removed part changes on each item; see `lensprune.analysis.head_effects.item_effects`."""
        return head_effects.item_effects(self, task, protocol, component=component, ablation=ablation, measure=measure)

    def concentration(
        self,
        task: str | None = None,
        protocol: str | None = None,
        *,
        component: str = "head",
        ablation: str | None = None,
        measure: str = "correct",
        top: Sequence[int] = TOP,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Whether few or many parts carry a task, against a null of noise; see `lensprune.analysis.concentration`.

        Args:
            component: ``head``, ``kv_group``, ``layer``, ``attention`` or ``mlp``.
            ablation: of a run that removes parts in several ways, the one to take.
            measure: ``correct``, ``gold_logprob`` or ``logprob_margin``.
            top: the k of the shares of the top k.
        """
        effects = self.effects(task, protocol, component=component, ablation=ablation, measure=measure)
        return concentration_table(effects, top=top, seed=seed)

    def overlap(
        self, k: int = 10, *, component: str = "head", ablation: str | None = None, measure: str = "correct"
    ) -> pd.DataFrame:
        """How far tasks and protocols need the same parts; see `lensprune.analysis.overlap`."""
        return overlap(self.effects(component=component, ablation=ablation, measure=measure), k)

    def heads_and_groups(
        self,
        task: str | None = None,
        protocol: str | None = None,
        *,
        ablation: str | None = None,
        measure: str = "correct",
    ) -> list[pd.DataFrame]:
        """Query heads beside their key/value groups; see `lensprune.analysis.head_groups.heads_and_groups`."""
        return heads_and_groups(self, task, protocol, ablation=ablation, measure=measure)

    def screen(self) -> pd.DataFrame:
        """Every head of a screened sweep, measured or only estimated; see `lensprune.analysis.screening`."""
        return screening.screen_table(self)

    def screen_quality(self) -> pd.DataFrame:
        """What the random control set says of the estimates; see `lensprune.analysis.screening.screen_quality`."""
        return screening.screen_quality(self)

    def plot_concentration(
        self, *, component: str = "head", ablation: str | None = None, measure: str = "correct"
    ) -> Axes:
        """Lorenz curves of every (task, protocol); see `lensprune.results.figures.concentration`."""
        from lensprune.results.figures.concentration import lorenz_curves

        effects = self.effects(component=component, ablation=ablation, measure=measure)
        return lorenz_curves(effects, title=self.spec.model)

    def plot(self, kind: str = "depth", task: str | None = None, protocol: str | None = None) -> Axes | list[Axes]:
        """Draw the run; one Axes, or a list where there are several panels.

        =================  ===================================================================================
        ``depth``          Δμ against depth, one line a protocol, with intervals and the line of chance
        ``heads``          Δμ of each head, layers × heads, significant ones marked
        ``protocols``      Δμ under one protocol against another, on the same items
        ``concentration``  Lorenz curves: how much of the total change the strongest parts hold
        ``failures``       kinds of failure stacked by removed layer
        ``open_closed``    Δμ with the book closed and open
        =================  ===================================================================================

        `plot_data` gives the table that a figure draws.

        Raises:
            UserError: an unknown kind, a name that is not part of this run, or nothing to draw.
        """
        from lensprune.output.drawing.figure import drawn_axes
        from lensprune.results.figures.kinds import figure_of

        return drawn_axes(figure_of(self, kind, task, protocol))

    def plot_data(self, kind: str = "depth", task: str | None = None, protocol: str | None = None) -> pd.DataFrame:
        """The tidy table that `plot` draws.

        Raises:
            UserError: as `plot`.
        """
        from lensprune.results.figures.kinds import figure_of

        return figure_of(self, kind, task, protocol).data()

    def report(self, path: str | Path | None = None) -> Path:
        """Write the run as one self-contained HTML page; see `lensprune.results.page.write_report`."""
        from lensprune.results.page import write_report

        return write_report(self, path)

    def save(self, folder: str | Path | None = None) -> Path:
        """Write tables and figures into the run's folder, or all of it to `folder`; see `lensprune.results.outputs`."""
        from lensprune.results.outputs import save

        return save(self, folder)

    def _title(self) -> str:
        done, total = self.n_finished, self.n_expected
        state = f"{total} cells" if done == total else f"{done} of {total} cells"
        names = [t.name for t in self.spec.tasks]
        changed = len(self.spec.variants) - 1
        what = f"{changed} variant{'' if changed == 1 else 's'}, {_names(names)}, {_names(self.spec.protocols)}"
        return f"{self.spec.model}: {what}; {state}" + (f" in {self.folder}" if self.folder else "")

    def __repr__(self) -> str:
        return f"Run({self._title()})"

    def _repr_html_(self) -> str:
        frame = self.summary()
        shown = frame[beats_chance(frame) & (frame["variant"] != CLEAN.name)].sort_values("delta", kind="stable")
        unclear = frame[known_at_chance(frame)][["task", "protocol"]].drop_duplicates()
        note = "".join(
            f"<p>{html.escape(task)} under {html.escape(protocol)}: the clean model is at chance, not ranked.</p>"
            for task, protocol in unclear.itertuples(index=False)
        )
        table = shown.head(10).to_html(
            columns=_SHOWN, index=False, float_format=lambda x: f"{x:.3f}", escape=True, border=0
        )
        return f"<p><b>{html.escape(self._title())}</b></p><p>Largest losses</p>{table}{note}"


_SHOWN = [
    "variant", "task", "protocol", "n", "accuracy_clean", "accuracy", "delta", "ci_low", "ci_high", "q_loss",
]  # fmt: skip


def _names(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{len(names)} ({names[0]}, ..., {names[-1]})"
