"""The figures of a run by kind: what `Run.plot` draws, `Run.save` writes and a report holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import pandas as pd

from lensprune.analysis.critical import BRANCHES
from lensprune.analysis.failures import failure_counts
from lensprune.analysis.head_effects import item_effects
from lensprune.analysis.protocol_gap import protocol_gap, task_gap
from lensprune.analysis.summary import summarise
from lensprune.errors import UserError
from lensprune.output.drawing.figure import Figure, unknown_kind
from lensprune.results.figures.concentration import lorenz_curves, lorenz_data
from lensprune.results.figures.depth import delta_by_depth, delta_by_depth_data
from lensprune.results.figures.failures import failures_by_layer
from lensprune.results.figures.heads import head_effect_maps, head_effect_maps_data
from lensprune.results.figures.protocols import open_book_gap_by_depth, protocol_pairs
from lensprune.runs.outcomes import Outcomes

__all__ = ["KINDS", "figure_of", "figures_of"]

_OPEN = "_open"


def _summary(outcomes: Outcomes, task: str | None, protocol: str | None) -> pd.DataFrame:
    frame = summarise(outcomes)
    if task is not None:
        frame = frame[frame["task"] == task]
    return frame if protocol is None else frame[frame["protocol"] == protocol]


def _depth(outcomes: Outcomes, task: str | None, protocol: str | None) -> Figure:
    summary = _summary(outcomes, task, protocol)
    data = delta_by_depth_data(summary)
    spec = outcomes.spec
    return Figure(
        "delta_by_depth",
        f"Line chart: change of accuracy against the layer that was changed, for {data['task'].nunique()} tasks, "
        "one line a protocol",
        "Δμ against depth by protocol. Band: paired 95% interval; dotted: where accuracy would be at chance; grey "
        "dashes: the clean model is at chance.",
        partial(delta_by_depth, summary, n_layers=spec.n_layers, title=spec.model),
        lambda: data,
    )


def _heads(outcomes: Outcomes, task: str | None, protocol: str | None) -> Figure:
    summary = _summary(outcomes, task, protocol)
    data = head_effect_maps_data(summary)
    spec = outcomes.spec
    return Figure(
        "heads",
        f"Heatmaps of layers by heads: change of accuracy without each head; {int(data['significant'].sum())} marked",
        "Δμ without each head. Dot: q ≤ 0.05.",
        partial(head_effect_maps, summary, n_layers=spec.n_layers, n_heads=spec.n_heads, title=spec.model),
        lambda: data,
    )


def _protocols(outcomes: Outcomes, task: str | None, protocol: str | None) -> Figure:
    if protocol is not None:
        raise UserError(f"protocols are compared with each other: leave out protocol {protocol!r}")
    gap = protocol_gap(outcomes, task)
    protocol_pairs_data = gap[gap["layer"].notna()]
    if protocol_pairs_data.empty:
        raise UserError("there is nothing to draw: no changed part of one layer is measured under two protocols")
    return Figure(
        "protocols",
        "Scatter plots: change of accuracy under one protocol against another, a point for each changed part",
        "Each changed part under two protocols, on the same items. Diagonal: equal losses; ring: the gap has q ≤ 0.05. "
        "Points are shifted by up to a third of an item so that none hides another.",
        partial(protocol_pairs, gap, title=outcomes.spec.model),
        lambda: protocol_pairs_data,
    )


def _concentration(outcomes: Outcomes, task: str | None, protocol: str | None) -> Figure:
    component = _component(outcomes)
    ablations = summarise(outcomes).query("component == @component")["ablation"].unique()
    effects = item_effects(outcomes, task, protocol, component=component, ablation=str(ablations[0]))
    data = lorenz_data(effects)
    return Figure(
        "concentration",
        f"Lorenz curves: share of the total change held by the strongest {component}s",
        f"Concentration of the changes over {component}s. Band: noise alone; diagonal: all equal.",
        partial(lorenz_curves, effects, title=outcomes.spec.model),
        lambda: data,
    )


def _component(outcomes: Outcomes) -> str:
    components = list(dict.fromkeys(summarise(outcomes)["component"]))
    for component in ("head", "kv_group", *BRANCHES):
        if component in components:
            return component
    raise UserError("there is nothing to draw: the run removes no part of its own")


def _failures(outcomes: Outcomes, task: str | None, protocol: str | None) -> Figure:
    counts = failure_counts(outcomes, task, protocol)
    return Figure(
        "failures",
        "Stacked bars: kinds of failure for each removed layer",
        "How answers fail for each removed layer; the bar on the left is the clean model.",
        partial(failures_by_layer, counts, title=outcomes.spec.model),
        lambda: counts,
    )


def _open_closed(outcomes: Outcomes, task: str | None, protocol: str | None) -> Figure:
    names = [spec.name for spec in outcomes.spec.tasks]
    closed_of = {name: name.replace(_OPEN, "", 1) for name in names if _OPEN in name.partition("[")[0]}
    pairs = [(closed, opened) for opened, closed in closed_of.items() if closed in names and task in (None, closed)]
    if not pairs:
        raise UserError(
            "there is nothing to draw: the run needs a task with the book closed and open, like facts and facts_open"
        )
    closed, opened = pairs[0]
    gap = task_gap(outcomes, closed, opened)
    gap = gap if protocol is None else gap[gap["protocol_b"] == protocol]
    return Figure(
        "open_closed",
        f"Line chart: change of accuracy on {closed} and on {opened} against the layer",
        "Book closed (dashed) against open (solid), on the same items.",
        partial(open_book_gap_by_depth, gap, n_layers=outcomes.spec.n_layers, title=outcomes.spec.model),
        lambda: gap,
    )


KINDS: dict[str, Callable[[Outcomes, str | None, str | None], Figure]] = {
    "depth": _depth,
    "heads": _heads,
    "protocols": _protocols,
    "concentration": _concentration,
    "failures": _failures,
    "open_closed": _open_closed,
}
"""What `Run.plot` takes as `kind`."""


def figure_of(outcomes: Outcomes, kind: str = "depth", task: str | None = None, protocol: str | None = None) -> Figure:
    """The figure of one kind.

    Raises:
        UserError: an unknown kind, a name that is not part of this run, or a kind that this run has nothing for.
    """
    if kind not in KINDS:
        raise unknown_kind(kind, KINDS)
    outcomes.select(task, protocol)
    return KINDS[kind](outcomes, task, protocol)


def figures_of(outcomes: Outcomes, kinds: Iterable[str] = tuple(KINDS)) -> list[Figure]:
    """The figures of those `kinds` that this run has something for, in their order."""
    figures = []
    for kind in kinds:
        try:
            figures.append(figure_of(outcomes, kind))
        except UserError:
            # A kind that the run has nothing for; damage to records is another error and is not hidden.
            continue
    return figures
