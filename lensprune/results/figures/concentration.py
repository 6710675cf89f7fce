"""Lorenz curves: the share of the total effect in the strongest parts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from lensprune.ablation.choices import head_names
from lensprune.ablation.components import parts
from lensprune.analysis.concentration import lorenz, null_effects
from lensprune.analysis.head_effects import ItemEffects, item_effects
from lensprune.analysis.intervals import unit_sums
from lensprune.analysis.summary import summarise
from lensprune.errors import UserError
from lensprune.output.drawing.style import GREY, MARKERS, colours, legend_below, panels, short_tasks
from lensprune.results.analyses import register_analysis
from lensprune.runs.chance import beats_chance
from lensprune.runs.outcomes import Outcomes

__all__ = ["item_lorenz", "lorenz_curves", "lorenz_data"]

_DRAWS = 500


def lorenz_data(effects: Sequence[ItemEffects], *, seed: int = 0) -> pd.DataFrame:
    """What `lorenz_curves` draws: task, protocol, measure, at_chance, share_of_parts, share_of_effect, null_low,
    null_high (95% range of the noise null).

    Raises:
        UserError: nothing to draw: every effect is 0.
    """
    frames = []
    for of_condition in effects:
        if not np.any(of_condition.effects != 0):
            continue
        sums, _ = unit_sums(of_condition.differences, of_condition.clusters)
        noise = null_effects(sums, _DRAWS, seed)
        low, high = np.nanquantile(lorenz(noise), [0.025, 0.975], axis=0)
        curve = {
            "share_of_parts": np.linspace(0, 1, len(of_condition.variants) + 1),
            "share_of_effect": lorenz(of_condition.effects),
        }
        place = {
            "task": of_condition.task,
            "protocol": of_condition.protocol,
            "measure": of_condition.measure,
            "at_chance": of_condition.at_chance,
        }
        frames.append(pd.DataFrame({**place, **curve, "null_low": low, "null_high": high}))
    if not frames:
        raise UserError("there is nothing to draw: no removed part changed anything")
    return pd.concat(frames, ignore_index=True)


def lorenz_curves(data: pd.DataFrame, *, title: str = "") -> Axes:
    """Draw the share of the total |effect| held by the strongest parts, one line per (task, protocol).

    The band of a line's colour is the 95% range of its noise null (`null_effects`); the diagonal is where all parts
    count the same. A task at chance is grey and dashed.

    Args:
        data: from `lorenz_data`.
    """
    curves = list(data.groupby(["task", "protocol"], sort=False))
    short = short_tasks(list(dict.fromkeys(str(task) for (task, _), _ in curves)))
    # The legend below takes room of its own.
    _, (ax,) = panels(1, size=(5.2, 4.4 + 0.1 * (len(curves) + 1)), title=title)
    ax.set_box_aspect(1)
    for i, ((task, protocol), curve) in enumerate(curves):
        unclear = not beats_chance(curve).iloc[0]
        colour = GREY if unclear else colours(len(curves))[i]
        share = curve["share_of_parts"]
        ax.fill_between(share, curve["null_low"], curve["null_high"], color=colour, alpha=0.15, linewidth=0)
        # Markers in places of their own tell lines apart where colours do not.
        ax.plot(
            share,
            curve["share_of_effect"],
            color=colour,
            linestyle="--" if unclear else "-",
            marker=MARKERS[i % len(MARKERS)],
            markersize=4,
            markevery=(i, max(1, len(curve) // 8)),
            label=f"{short[str(task)]}, {protocol}" + (" (at chance)" if unclear else ""),
        )
    ax.plot([0, 1], [0, 1], color="0.6", linewidth=0.9, linestyle=":", label="all equal")
    ax.set(
        xlabel="share of removed parts, strongest first",
        ylabel=f"share of total |change in {data['measure'].iloc[0]}|",
        xlim=(0, 1),
        ylim=(0, 1.01),
    )
    # Curves may reach any corner.
    legend_below([ax], ax.get_legend_handles_labels()[0], columns=2)
    return ax


@register_analysis(
    name="lorenz",
    title="Lorenz curves",
    draw=lambda data, spec: lorenz_curves(data, title=spec.model),
    alt=lambda data: f"Lorenz curves: share of the total change held by the strongest {data['component'].iloc[0]}s",
)
def item_lorenz(
    outcomes: Outcomes,
    task: str | None = None,
    protocol: str | None = None,
    *,
    component: str | None = None,
    ablation: str | None = None,
    measure: str = "correct",
) -> pd.DataFrame:
    """How much of the total change the strongest removed parts hold. Band: noise alone; diagonal: all equal.

    Args:
        component: the parts to take; without it heads, where the run removes some.
        ablation: how they were removed; without it the run's first way.
        measure: one of `lensprune.analysis.head_effects.MEASURES`.

    Raises:
        UserError: no such part was removed, or none changed anything.
    """
    removed = summarise(outcomes).dropna(subset="component")
    if component is None:
        # Unknown parts come last: those of a plug-in that is not here.
        order = [*head_names(), *(part.name for part in parts() if part.name not in head_names())]
        components = sorted(
            set(removed["component"]), key=lambda name: order.index(name) if name in order else len(order)
        )
        component = next(iter(components), "head")
    if ablation is None:
        ablation = next(iter(removed.loc[removed["component"] == component, "ablation"]), None)
    effects = item_effects(outcomes, task, protocol, component=component, ablation=ablation, measure=measure)
    return lorenz_data(effects).assign(component=component)
