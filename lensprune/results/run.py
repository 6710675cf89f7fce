"""A run: its outcomes, and what they say. Every method is one function of the outcomes."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from lensprune.ablation.variants import CLEAN
from lensprune.analysis import critical, depth, head_effects, head_groups, screening
from lensprune.analysis import protocol_gap as gaps
from lensprune.analysis import signatures as signs
from lensprune.analysis import summary as summaries
from lensprune.analysis.concentration import TOP, concentration_table
from lensprune.analysis.overlap import overlap
from lensprune.output.drawing.figure import drawn_axes
from lensprune.results.analyses import analyses, analysis_named
from lensprune.results.item import ItemView, item_of
from lensprune.runs.chance import beats_chance, known_at_chance
from lensprune.runs.outcomes import Outcomes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Run"]

# Drawing libraries take seconds to import, so the modules that draw are imported when something is drawn.


class Run(Outcomes):
    """What a sweep returns: its `Outcomes`, in memory or on disk, with every analysis, figure and page as a method.

    Methods that are functions of `lensprune.analysis` take what these take after the run. Every other analysis with a
    name (`lensprune.results.analyses`), those of plug-ins among them, is a method too: ``run.failures(task)`` gives the
    table that ``run.plot("failures", task)`` draws.
    """

    summary = summaries.summarise
    critical_layers = critical.critical_layers
    depth_bands = depth.depth_bands
    protocol_gap = gaps.protocol_gap
    open_book_gap = gaps.task_gap
    signatures = signs.signatures
    effects = head_effects.item_effects
    heads_and_groups = head_groups.heads_and_groups
    screen = screening.screen_table
    screen_quality = screening.screen_quality

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

    def item(self, item_id: str | int, task: str | None = None, protocol: str | None = None) -> ItemView:
        """One item: its prompt and options, and every variant's answer and log-probabilities.

        Args:
            item_id: as in the records.
            task: needed where several tasks have an item of that name.
            protocol: ``None`` shows every protocol that asked the item.

        Raises:
            UserError: as `lensprune.results.item.item_of`.
        """
        return item_of(self, item_id, task, protocol)

    def plot(
        self, kind: str = "depth", task: str | None = None, protocol: str | None = None, **options: Any
    ) -> Axes | list[Axes]:
        """Draw an analysis of the run; one Axes, or a list where there are several panels.

        `plot_data` gives the table that it draws.

        Args:
            kind: ``depth``, ``heads``, ``protocols``, ``lorenz``, ``failures``, ``open_closed``, ``thinking_length``,
                or one of a plug-in.
            options: of the analysis, such as ``component`` of ``lorenz``.

        Raises:
            UserError: an unknown kind or option, a name that is not part of this run, or nothing to draw.
        """
        return drawn_axes(analysis_named(kind).figure(self, task, protocol, **options))

    def plot_data(
        self, kind: str = "depth", task: str | None = None, protocol: str | None = None, **options: Any
    ) -> pd.DataFrame:
        """The tidy table of an analysis, which `plot` draws.

        Raises:
            UserError: as `plot`.
        """
        return analysis_named(kind).table(self, task, protocol, **options)

    def __getattr__(self, name: str) -> Callable[..., pd.DataFrame]:
        if not name.startswith("_"):
            for analysis in analyses():
                if analysis.name == name:
                    return partial(analysis.table, self)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *(analysis.name for analysis in analyses())]

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
