"""How answers fail when a part is removed: kinds of failure stacked by layer."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from lensprune.analysis.failures import FAILURES, failure_counts
from lensprune.errors import UserError
from lensprune.output.drawing.style import colours, legend_below, panel_title, panels, short_tasks
from lensprune.results.analyses import register_analysis

__all__ = ["failures_by_layer"]

_LOOKS = {
    "no_answer": (7, ""), "cut_off": (0, "\\\\"), "degenerate": (4, "//"), "wrong_answer": (3, ".."),
    "non_finite": (5, "xx"),
}  # fmt: skip
"""Place in the palette, without green, which would say that all is well; and the hatching that tells kinds apart in
grey print."""
_CLEAN = -1
"""Place of the clean model among the layers."""


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
    _, axes = panels(len(groups), size=(4.6, 2.9), columns=3, sharey=True, title=title)
    palette = colours(10)
    short = short_tasks(list(dict.fromkeys(str(task) for (task, _), _ in groups)))
    for ax, ((task, protocol), panel) in zip(axes, groups, strict=True):
        wide = panel.assign(layer=panel["layer"].fillna(_CLEAN)).pivot(index="layer", columns="failure", values="share")
        apart = -max(2, round(0.1 * len(wide)))
        places = [layer if layer != _CLEAN else apart for layer in wide.index]
        bottom = pd.Series(0.0, index=wide.index)
        for kind in kinds:
            colour, hatch = _LOOKS[kind]
            ax.bar(
                places, wide[kind], bottom=bottom, width=0.85, color=palette[colour], label=kind.replace("_", " "),
                hatch=hatch, edgecolor="white", linewidth=0.3,
            )  # fmt: skip
            bottom = bottom + wide[kind]
        part = str(panel["component"].iloc[0]).replace("_", "-")
        ax.set(xlabel=f"{part} removed ({panel['ablation'].iloc[0]})", ylim=(0, 1))
        ax.set_title(panel_title(short[str(task)], f"{protocol} (n {int(panel['n'].iloc[0])})"), fontsize=9)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
        ticks = [tick for tick in ax.get_xticks() if 0 <= tick <= max(places)]
        ax.set_xticks([apart, *ticks], ["clean", *(f"{tick:.0f}" for tick in ticks)])
        ax.tick_params(labelsize=8)
    for ax in axes[::3]:
        ax.set_ylabel("share of items")
    if kinds:
        legend_below(axes, axes[0].get_legend_handles_labels()[0], columns=len(kinds))
    return axes


register_analysis(
    name="failures",
    title="How answers fail",
    text="How answers fail for each removed layer; the bar on the left is the clean model.",
    draw=lambda counts, spec: failures_by_layer(counts, title=spec.model),
    alt=lambda counts: "Stacked bars: kinds of failure for each removed layer",
)(failure_counts)
