"""How answers fail when a part is removed: kinds of failure stacked by layer."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from lensprune.analysis.failures import FAILURES, failure_counts
from lensprune.errors import UserError
from lensprune.output.drawing.style import colours, panel_title, panels
from lensprune.results.analyses import register_analysis

__all__ = ["failures_by_layer"]

_HATCHES = ("", "//", "..", "xx", "\\\\", "++")
"""In grey print hatching tells kinds apart."""


def failures_by_layer(counts: pd.DataFrame, *, title: str = "") -> list[Axes]:
    """Draw the share of items that fail, by kind, for each removed layer: one panel per (task, protocol).

    The bar apart on the left is the clean model.

    Args:
        counts: from `failure_counts`.

    Raises:
        UserError: an empty table.
    """
    if counts.empty:
        raise UserError("there is nothing to draw: no cell is finished")
    groups = list(counts.groupby(["task", "protocol"], sort=False))
    kinds = [kind for kind in FAILURES if counts.loc[counts["failure"] == kind, "count"].any()]
    figure, axes = panels(len(groups), size=(4.6, 2.9), columns=3, sharey=True, title=title)
    palette = dict(zip(FAILURES, colours(len(FAILURES)), strict=True))
    for ax, ((task, protocol), panel) in zip(axes, groups, strict=True):
        wide = panel.pivot(index="layer", columns="failure", values="share")
        apart = -max(2, round(0.1 * len(wide)))
        places = [layer if layer >= 0 else apart for layer in wide.index]
        bottom = pd.Series(0.0, index=wide.index)
        for kind in kinds:
            ax.bar(
                places, wide[kind], bottom=bottom, width=0.85, color=palette[kind], label=kind.replace("_", " "),
                hatch=_HATCHES[FAILURES.index(kind) % len(_HATCHES)], edgecolor="white", linewidth=0.3,
            )  # fmt: skip
            bottom = bottom + wide[kind]
        part = str(panel["component"].iloc[0]).replace("_", "-")
        ax.set(xlabel=f"{part} removed ({panel['ablation'].iloc[0]})", ylim=(0, 1))
        ax.set_title(panel_title(str(task), f"{protocol} (n {int(panel['n'].iloc[0])})"), fontsize=9)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
        ticks = [tick for tick in ax.get_xticks() if 0 <= tick <= max(places)]
        ax.set_xticks([apart, *ticks], ["clean", *(f"{tick:.0f}" for tick in ticks)])
        ax.tick_params(labelsize=8)
    for ax in axes[::3]:
        ax.set_ylabel("share of items")
    if kinds:
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(kinds), fontsize=8, frameon=False)
    return axes


register_analysis(
    name="failures",
    title="How answers fail",
    text="How answers fail for each removed layer; the bar on the left is the clean model.",
    draw=lambda counts, spec: failures_by_layer(counts, title=spec.model),
    alt=lambda counts: "Stacked bars: kinds of failure for each removed layer",
)(failure_counts)
