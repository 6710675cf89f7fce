"""A run: its outcomes, and views of them. Every method is one function of the outcomes."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from lensprune.ablation.orders import place_in_order
from lensprune.ablation.variants import CLEAN
from lensprune.analysis import critical, depth, head_effects, head_groups, screening
from lensprune.analysis import protocol_gap as gaps
from lensprune.analysis import signatures as signs
from lensprune.analysis import summary as summaries
from lensprune.analysis.concentration import TOP, concentration_table
from lensprune.analysis.decisions import unfinished
from lensprune.analysis.overlap import overlap
from lensprune.analysis.runs_gap import runs_gap
from lensprune.models.base import ModelOrName
from lensprune.output.drawing.figure import drawn_axes
from lensprune.output.tables import of_how_many
from lensprune.results.analyses import Option, analyses, analysis_named
from lensprune.results.item import ItemView, item_of
from lensprune.runs.chance import beats_chance, known_at_chance
from lensprune.runs.outcomes import Outcomes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from lensprune.results.explorer import Page

__all__ = ["Run"]

# Drawing libraries take seconds to import, so the modules that draw are imported when something is drawn.


class Run(Outcomes):
    """The result of a sweep: its `Outcomes`, in memory or on disk, with every analysis, figure and page as a method.

    Methods that correspond to functions of `lensprune.analysis` take the same arguments, without the run. Every other
    named analysis (`lensprune.results.analyses`), plug-ins included, is a method too: ``run.failures(task)`` returns
    the table that ``run.plot("failures", task)`` draws.

    Examples:
        >>> run
        Run(toy-distilled: 4 variants, kv_retrieval[...], generate; 5 cells)
        >>> run.summary()[["variant", "delta"]].head(2).to_dict("records")
        [{'variant': 'clean', 'delta': 0.0}, {'variant': 'L0.skip', 'delta': -1.0}]
        >>> len(run.records())
        40
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
        """Measure whether few or many parts carry the effects, against a null; see `lensprune.analysis.concentration`.

        Args:
            task, protocol: only this one; ``None`` takes all.
            component: ``head``, ``kv_group``, ``layer``, ``attention`` or ``mlp``.
            ablation: which ablation, in a run with several.
            measure: ``correct``, ``gold_logprob`` or ``logprob_margin``.
            top: values of k for which to return the share of the strongest k parts.
            seed: seed of bootstrap and null.
        """
        effects = self.effects(task, protocol, component=component, ablation=ablation, measure=measure)
        return concentration_table(effects, top=top, seed=seed)

    def overlap(
        self, k: int = 10, *, component: str = "head", ablation: str | None = None, measure: str = "correct"
    ) -> pd.DataFrame:
        """Compare the strongest `k` parts of tasks and protocols; see `lensprune.analysis.overlap`."""
        return overlap(self.effects(component=component, ablation=ablation, measure=measure), k)

    def item(self, item_id: str | int, task: str | None = None, protocol: str | None = None) -> ItemView:
        """Show one item: its prompt and options, and every variant's answer and log-probabilities.

        Args:
            item_id: as in the records.
            task: needed if several tasks have an item with that id.
            protocol: ``None`` shows every protocol that used the item.

        Raises:
            UserError: as `lensprune.results.item.item_of`.
        """
        return item_of(self, item_id, task, protocol)

    def compare(self, other: Outcomes, task: str | None = None, protocol: str | None = None) -> pd.DataFrame:
        """Δμ in `other` minus Δμ in this run, change by change, paired on the items that both used; see
        `lensprune.analysis.runs_gap`. ``lensprune report FOLDER OTHER`` makes a page of it.

        Raises:
            UserError: a name that is not part of this run, or the two share no finished change.
        """
        return runs_gap(self, other, task, protocol)

    def plot(
        self,
        kind: str | None = None,
        task: str | None = None,
        protocol: str | None = None,
        *,
        ax: Axes | Sequence[Axes] | None = None,
        **options: Option,
    ) -> Axes | list[Axes]:
        """Draw an analysis of the run.

        Args:
            kind: ``depth``, ``variants``, ``heads``, ``protocols``, ``lorenz``, ``failures``, ``thinking_length``,
                ``open_closed``, or a plug-in's; ``None`` takes ``removal`` of removal curves, else ``depth``, and
                ``variants`` where more variants are sets or hooks than it draws.
            task, protocol: only this one; ``None`` takes all.
            ax: draw on these axes, one per panel; ``None`` makes a figure.
            options: options of the analysis, such as ``component`` of ``lorenz``; ``lensprune analyse FOLDER`` lists
                them.

        Returns:
            One Axes, or a list if there are several panels; `plot_data` returns the table that they show.

        Raises:
            UserError: an unknown kind or option, a name that is not part of this run, nothing to draw, or another
                number of axes than the figure has panels.
        """
        return drawn_axes(analysis_named(kind or self._main_kind()).figure(self, task, protocol, **options), ax)

    def plot_data(
        self, kind: str | None = None, task: str | None = None, protocol: str | None = None, **options: Option
    ) -> pd.DataFrame:
        """Return the tidy table of an analysis, which `plot` draws; arguments as for `plot`.

        Raises:
            UserError: as `plot`.
        """
        return analysis_named(kind or self._main_kind()).table(self, task, protocol, **options)

    def _main_kind(self) -> str:
        """The main analysis of the run: of the two that draw single parts and sets, the one that draws more."""
        if any(place_in_order(name) is not None for name in self.spec.variant_names):
            return "removal"
        summary = summaries.summarise(self)
        changed = summary[summary["variant"] != CLEAN.name].drop_duplicates("variant")
        # Depth draws one kind of part and ablation.
        kinds = changed.loc[changed["layer"].notna(), ["component", "ablation"]]
        drawn = int((kinds == kinds.iloc[0]).all(axis=1).sum()) if len(kinds) else 0
        return "depth" if drawn and drawn >= len(changed) - len(kinds) else "variants"

    def __getattr__(self, name: str) -> Callable[..., pd.DataFrame]:
        if not name.startswith("_"):
            for analysis in analyses():
                if analysis.name == name:
                    return partial(analysis.table, self)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *(analysis.name for analysis in analyses())]

    def report(self, path: str | Path | None = None, *, patterns: int = 0, model: ModelOrName | None = None) -> Path:
        """Write the run as one self-contained HTML page; see `lensprune.results.page.write_report`."""
        from lensprune.results.page import write_report

        return write_report(self, path, patterns=patterns, model=model)

    def explore(self, other: Outcomes | None = None, *, patterns: int = 0, model: ModelOrName | None = None) -> Page:
        """The run's page, or with `other` that of the comparison of both, to look at in a notebook.

        Args:
            other: a second run, whose maps and answers are shown next to this one's.
            patterns: number of heads whose attention patterns are included, each on one item of every task and
                protocol; 0 loads no model.
            model: the run's model, for `patterns`; ``None`` loads it by the run's name for it.

        Raises:
            UserError: as `lensprune.analysis.runs_gap.runs_gap`; a model, but no patterns.

        Examples:
            >>> run.explore()
            Page(... MB of HTML: .save(FILE) writes it)
        """
        from lensprune.results.compare import compare_page
        from lensprune.results.explorer import Page
        from lensprune.results.page import run_page

        if other is None:
            return Page(run_page(self, None, patterns=patterns, model=model))
        return Page(compare_page(self, other, patterns=patterns, model=model))

    def save(self, folder: str | Path | None = None) -> Path:
        """Write tables and figures into the run's folder, or all of it to `folder`; see `lensprune.results.outputs`."""
        from lensprune.results.outputs import save

        return save(self, folder)

    def _title(self) -> str:
        state = unfinished(self) or f"{self.n_expected} cells"
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
        table = shown.head(_ROWS).to_html(
            columns=_SHOWN, index=False, float_format=lambda x: f"{x:.3f}", escape=True, border=0
        )
        left = of_how_many(min(len(shown), _ROWS), len(shown), "changes; summary() has all")
        return f"<p><b>{html.escape(self._title())}</b></p><p>Largest losses</p>{table}<p>{left}</p>{note}"


_ROWS = 10
_SHOWN = [
    "variant", "task", "protocol", "n", "accuracy_clean", "accuracy", "delta", "ci_low", "ci_high", "q_loss",
]  # fmt: skip


def _names(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{len(names)} ({names[0]}, ..., {names[-1]})"
