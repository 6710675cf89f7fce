"""Analyses of a run by name, from which table, figure, files, page section and command derive."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any, TypeVar, overload

import pandas as pd

from lensprune.analysis.critical import critical_layers
from lensprune.analysis.depth import depth_bands
from lensprune.analysis.signatures import signatures
from lensprune.errors import LensPruneError, UserError, unknown_name
from lensprune.output.drawing.figure import Figure, unknown_kind
from lensprune.parameters import parse_spec, read_values
from lensprune.registry import Registry
from lensprune.runs.outcomes import Outcomes
from lensprune.runs.spec import SweepSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Analysis", "Option", "analyses", "analysis_named", "parse_analysis", "register_analysis", "shown_analyses"]

Option = str | int | float | bool | None
"""The value of an analysis option, as settable on the command line; ``None`` takes the default."""
Measure = Callable[..., pd.DataFrame]
Draw = Callable[[pd.DataFrame, SweepSpec], "Axes | list[Axes]"]


@dataclass(frozen=True)
class Analysis:
    """One analysis of a run; made by `register_analysis`.

    `measure` takes a run and options, all with defaults (`task` and `protocol` first), and returns a tidy table. It
    raises `UserError` if the run has no data for it. `draw` draws that table; the run's spec has the model's name and
    shape. `title` is the heading of its page section, `text` the figure's caption, and `alt` maps the table to the
    figure's alternative text. `columns`: the columns that page and terminal show, with number formats such as ``+.3f``
    (empty for text). `saved`: whether a run's folder gets the figure, and the table of an analysis with `columns`.
    """

    name: str
    title: str
    text: str
    measure: Measure
    draw: Draw | None = None
    alt: Callable[[pd.DataFrame], str] | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    saved: bool = False

    @property
    def options(self) -> dict[str, Parameter]:
        """The options, by name."""
        return dict(list(signature(self.measure).parameters.items())[1:])

    def table(
        self, outcomes: Outcomes, task: str | None = None, protocol: str | None = None, **options: Option
    ) -> pd.DataFrame:
        """The table of a run.

        Raises:
            UserError: an option that the analysis lacks, a name that is not part of this run, or nothing to measure.
            LensPruneError: the table lacks one of `columns`.
        """
        task = None if task is None else outcomes.task_named(task)
        given = {"task": task, "protocol": protocol, **options}
        given = {name: value for name, value in given.items() if value is not None}
        for name in given:
            if name not in self.options:
                raise unknown_name(f"option of analysis {self.name!r}", name, self.options)
        outcomes.select(task, protocol)
        table = self.measure(outcomes, **given)
        lacking = next((name for name in self.columns if name not in table), None)
        if lacking is not None:
            raise LensPruneError(f"the table of analysis {self.name!r} lacks the column {lacking!r} that it shows")
        return table

    def figure(
        self, outcomes: Outcomes, task: str | None = None, protocol: str | None = None, **options: Option
    ) -> Figure:
        """The figure of a run, with the table that it draws.

        Raises:
            UserError: as `table`, or an analysis without a figure.
        """
        return self.figure_of(self.table(outcomes, task, protocol, **options), outcomes.spec)

    def figure_of(self, table: pd.DataFrame, spec: SweepSpec) -> Figure:
        """The figure of a table that is already measured.

        Raises:
            UserError: an analysis without a figure, or a table without rows.
        """
        if self.draw is None:
            raise UserError(f"analysis {self.name!r} has no figure, only a table: use plot_data")
        if table.empty:
            raise UserError(f"there is nothing to draw: {self.name} has no rows for this run")
        alt = self.title if self.alt is None else self.alt(table)
        return Figure(self.name, alt, self.text, partial(self.draw, table, spec), lambda: table)


_TAKEN = frozenset(
    [
        "cell",
        "compare",
        "concentration",
        "conditions",
        "copy_to",
        "critical_layers",
        "depth_bands",
        "effects",
        "explore",
        "figures",
        "finished",
        "folder",
        "heads_and_groups",
        "is_stored",
        "item",
        "load",
        "n_expected",
        "n_finished",
        "n_stored",
        "open_book_gap",
        "overlap",
        "plot",
        "plot_data",
        "protocol_gap",
        "questions",
        "ranked",
        "records",
        "report",
        "samples",
        "save",
        "screen",
        "screen_quality",
        "select",
        "signatures",
        "spec",
        "summary",
        "task_named",
    ]
)
"""Names of a run's attributes and files, which a plug-in's table would hide or overwrite."""
_ANALYSES: Registry[Analysis] = Registry("analysis")
_imported: set[str] = set()

M = TypeVar("M", bound=Measure)


def _import_built_in() -> None:
    # Each figure module registers its analyses. Drawing libraries take seconds to import, so this happens late.
    figures = importlib.import_module("lensprune.results.figures")
    for module in pkgutil.iter_modules(figures.__path__, f"{figures.__name__}."):
        if module.name not in _imported:
            _imported.add(module.name)
            importlib.import_module(module.name)


@overload
def register_analysis(measure: M) -> M: ...
@overload
def register_analysis(
    *,
    name: str | None = None,
    title: str | None = None,
    text: str | None = None,
    draw: Draw | None = None,
    alt: Callable[[pd.DataFrame], str] | None = None,
    columns: Mapping[str, str] | None = None,
    saved: bool = False,
) -> Callable[[M], M]: ...
def register_analysis(
    measure: M | None = None,
    *,
    name: str | None = None,
    title: str | None = None,
    text: str | None = None,
    draw: Draw | None = None,
    alt: Callable[[pd.DataFrame], str] | None = None,
    columns: Mapping[str, str] | None = None,
    saved: bool = False,
) -> M | Callable[[M], M]:
    """Register the decorated function of a run as an analysis with a table and, with `draw`, a figure.

    `Run.plot`, `Run.plot_data`, a method of `Run`, `Run.save`, the page and ``lensprune analyse`` then know it. The
    first paragraph of its docstring is its text.

    Args:
        measure: the function; takes `Outcomes`, `task`, `protocol` and options with defaults, and returns a tidy table.
        name: name of the analysis; ``None`` takes the function's name.
        title: heading of its page section; ``None`` takes the name in words.
        text: the figure's caption; ``None`` takes the first paragraph of the docstring.
        draw, alt, columns, saved: see `Analysis`.

    Raises:
        UserError: the name is taken, by another analysis or a part of `Run`, or isn't made of letters, digits, _ and -;
            an option lacks a default.

    Examples:
        >>> @lp.register_analysis(columns={"variant": "", "right": "d"})
        ... def right_answers(outcomes, task=None, protocol=None, *, at_least: int = 0):
        ...     '''Right answers per variant.'''
        ...     records = outcomes.records(task=task, protocol=protocol)
        ...     counts = records.groupby("variant", sort=False)["correct"].sum().rename("right").reset_index()
        ...     return counts[counts["right"] >= at_least]
        >>> run.right_answers(at_least=8)["variant"].tolist()
        ['clean', 'L2.skip', 'L3.skip']
    """

    def register(function: M) -> M:
        if not function.__module__.startswith("lensprune."):
            # What they are called is taken.
            _import_built_in()
        analysis_name = name or function.__name__
        if analysis_name in _TAKEN and not function.__module__.startswith("lensprune."):
            raise UserError(
                f"an analysis can't be named {analysis_name!r}, which is a part of every run: choose another name"
            )
        caption = text or " ".join((function.__doc__ or "").strip().partition("\n\n")[0].split())
        words = analysis_name.replace("_", " ")
        row = Analysis(
            analysis_name, title or words[:1].upper() + words[1:], caption, function, draw, alt, columns or {}, saved
        )
        lacking = next((key for key, option in row.options.items() if option.default is option.empty), None)
        if lacking is not None:
            raise UserError(f"analysis {analysis_name!r}: option {lacking!r} needs a default value")
        _ANALYSES.add(analysis_name, row, function)
        return function

    return register if measure is None else register(measure)


def analyses() -> tuple[Analysis, ...]:
    """All analyses, starting with those whose figures a run's folder gets."""
    _import_built_in()
    return tuple(sorted(_ANALYSES.rows(), key=lambda row: (not row.saved, row.name)))


def analysis_named(name: str) -> Analysis:
    """The analysis called `name`.

    Raises:
        UserError: there is none; the message gives the nearest and all.
    """
    names = [row.name for row in analyses()]
    if name not in names:
        raise unknown_kind(name, names, "analysis")
    return _ANALYSES.get(name)


def parse_analysis(text: str) -> tuple[Analysis, dict[str, Any]]:
    """Parse an analysis and its options from ``name`` or ``name[key=value,...]``.

    Raises:
        UserError: another form, an unknown analysis or option, or a value of the wrong kind.
    """
    name, given = parse_spec(text, "analysis")
    analysis = analysis_named(name)
    return analysis, read_values(analysis.measure, analysis.options, given, f"analysis {name!r}")


def shown_analyses(
    outcomes: Outcomes, *, saved: bool = False, step: Callable[[str], object] = lambda doing: None
) -> list[tuple[Analysis, pd.DataFrame]]:
    """The analyses that a page shows for a run (`saved`: that its folder gets), with their tables.

    Analyses without data in this run are left out. `step` is called with the title of each before it is computed.
    """
    shown = []
    for analysis in analyses():
        if (analysis.draw is None and not analysis.columns) or (saved and not analysis.saved):
            continue
        step(analysis.title)
        try:
            table = analysis.table(outcomes)
        except UserError:
            # The run has no data for it; damage to records is another error and is not hidden.
            continue
        if len(table):
            shown.append((analysis, table))
    return shown


for _function in (critical_layers, depth_bands, signatures):
    register_analysis(_function)
