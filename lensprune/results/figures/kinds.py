"""The figures of a run by kind: what `Run.plot` draws and what a report holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd
from matplotlib.axes import Axes

from lensprune.errors import UserError, nearest
from lensprune.results.figures.concentration import lorenz_curves, lorenz_data
from lensprune.results.figures.depth import delta_by_depth, delta_by_depth_data
from lensprune.results.figures.failures import failure_counts, failures_by_layer
from lensprune.results.figures.heads import head_effect_maps, head_effect_maps_data
from lensprune.results.figures.protocols import book_gap_by_depth, protocol_pairs
from lensprune.results.run import BRANCHES, Run

__all__ = ["KINDS", "RunFigure", "figure_of", "run_figures", "unknown_kind"]

_OPEN = "_open"


@dataclass(frozen=True)
class RunFigure:
    """A figure that can be drawn: `draw()` gives its axes, `data()` the tidy table that it draws."""

    name: str
    alt: str
    caption: str
    draw: Callable[[], Axes | list[Axes]]
    data: Callable[[], pd.DataFrame]


def _named(run: Run, task: str | None, protocol: str | None) -> pd.DataFrame:
    frame = run.summary()
    if task is not None:
        frame = frame[frame["task"] == task]
    return frame if protocol is None else frame[frame["protocol"] == protocol]


def _depth(run: Run, task: str | None, protocol: str | None) -> RunFigure:
    summary = _named(run, task, protocol)
    data = delta_by_depth_data(summary)
    return RunFigure(
        "delta_by_depth",
        f"Line chart: change of accuracy against the layer that was changed, for {data['task'].nunique()} tasks, "
        "one line a protocol",
        "Δμ against depth by protocol. Band: paired 95% interval; dotted: where accuracy would be at chance; grey "
        "dashes: the clean model is at chance.",
        partial(delta_by_depth, summary, n_layers=run.spec.n_layers, title=run.spec.model),
        lambda: data,
    )


def _heads(run: Run, task: str | None, protocol: str | None) -> RunFigure:
    summary = _named(run, task, protocol)
    data = head_effect_maps_data(summary)
    return RunFigure(
        "heads",
        f"Heatmaps of layers by heads: change of accuracy without each head; {int(data['significant'].sum())} marked",
        "Δμ without each head. Dot: q ≤ 0.05.",
        partial(head_effect_maps, summary, n_layers=run.spec.n_layers, n_heads=run.spec.n_heads, title=run.spec.model),
        lambda: data,
    )


def _protocols(run: Run, task: str | None, protocol: str | None) -> RunFigure:
    if protocol is not None:
        raise UserError(f"protocols are compared with each other: leave out protocol {protocol!r}")
    gap = run.protocol_gap(task)
    protocol_pairs_data = gap[gap["layer"].notna()]
    if protocol_pairs_data.empty:
        raise UserError("there is nothing to draw: no changed part of one layer is measured under two protocols")
    return RunFigure(
        "protocols",
        "Scatter plots: change of accuracy under one protocol against another, a point for each changed part",
        "Each changed part under two protocols, on the same items. Diagonal: equal losses; ring: the gap has q ≤ 0.05. "
        "Points are shifted by up to a third of an item so that none hides another.",
        partial(protocol_pairs, gap, title=run.spec.model),
        lambda: protocol_pairs_data,
    )


def _concentration(run: Run, task: str | None, protocol: str | None) -> RunFigure:
    component = _component(run)
    ablations = run.summary().query("component == @component")["ablation"].unique()
    effects = run.effects(task, protocol, component=component, ablation=str(ablations[0]))
    data = lorenz_data(effects)
    return RunFigure(
        "concentration",
        f"Lorenz curves: share of the total change held by the strongest {component}s",
        f"Concentration of the changes over {component}s. Band: noise alone; diagonal: all equal.",
        partial(lorenz_curves, effects, title=run.spec.model),
        lambda: data,
    )


def _component(run: Run) -> str:
    found = list(dict.fromkeys(run.summary()["component"]))
    for component in ("head", "kv_group", *BRANCHES):
        if component in found:
            return component
    raise UserError("there is nothing to draw: the run removes no part of its own")


def _failures(run: Run, task: str | None, protocol: str | None) -> RunFigure:
    counts = failure_counts(run)
    if task is not None:
        counts = counts[counts["task"] == task]
    if protocol is not None:
        counts = counts[counts["protocol"] == protocol]
    return RunFigure(
        "failures",
        "Stacked bars: kinds of failure for each removed layer",
        "How answers fail for each removed layer; the bar on the left is the clean model.",
        partial(failures_by_layer, counts, title=run.spec.model),
        lambda: counts,
    )


def _open_closed(run: Run, task: str | None, protocol: str | None) -> RunFigure:
    names = [spec.name for spec in run.spec.tasks]
    closed_of = {name: name.replace(_OPEN, "", 1) for name in names if _OPEN in name.partition("[")[0]}
    pairs = [(closed, opened) for opened, closed in closed_of.items() if closed in names and task in (None, closed)]
    if not pairs:
        raise UserError(
            "there is nothing to draw: the run needs a task with the book closed and open, like facts and facts_open"
        )
    closed, opened = pairs[0]
    gap = run.book_gap(closed, opened)
    gap = gap if protocol is None else gap[gap["protocol_b"] == protocol]
    return RunFigure(
        "open_closed",
        f"Line chart: change of accuracy on {closed} and on {opened} against the layer",
        "Book closed (dashed) against open (solid), on the same items.",
        partial(book_gap_by_depth, gap, n_layers=run.spec.n_layers, title=run.spec.model),
        lambda: gap,
    )


KINDS: dict[str, Callable[[Run, str | None, str | None], RunFigure]] = {
    "depth": _depth,
    "heads": _heads,
    "protocols": _protocols,
    "concentration": _concentration,
    "failures": _failures,
    "open_closed": _open_closed,
}
"""What `Run.plot` takes as `kind`."""


def figure_of(run: Run, kind: str = "depth", task: str | None = None, protocol: str | None = None) -> RunFigure:
    """The figure of one kind.

    Raises:
        UserError: an unknown kind, or one that this run has nothing for.
    """
    if kind not in KINDS:
        raise unknown_kind(kind, KINDS)
    return KINDS[kind](run, task, protocol)


def unknown_kind(kind: str, kinds: Iterable[str]) -> UserError:
    """The error for a kind of figure that is none of `kinds`: it names the nearest and all of them."""
    close = nearest(kind, kinds, 1)
    hint = f"did you mean {close[0]}? " if close else ""
    return UserError(f"unknown kind of figure {kind!r}: {hint}choose one of {', '.join(kinds)}")


def run_figures(run: Run) -> Sequence[RunFigure]:
    """Every kind that this run has something for, in the order of `KINDS`."""
    found = []
    for make in KINDS.values():
        try:
            found.append(make(run, None, None))
        except UserError:
            # A kind that the run has nothing for; damage to records is another error and is not hidden.
            continue
    return found
