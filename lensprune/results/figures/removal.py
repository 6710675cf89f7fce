"""Curves of accuracy against the number of parts removed or kept, by order."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from lensprune.ablation.orders import RANDOM
from lensprune.analysis.removal import removal_curve_table, removal_points
from lensprune.errors import UserError
from lensprune.output.drawing.style import MARKERS, colours, legend_below, panel_title, panels, short_tasks
from lensprune.results.analyses import register_analysis
from lensprune.runs.chance import beats_chance
from lensprune.runs.outcomes import Outcomes

__all__ = ["removal", "removal_figure"]

_MAX_TICKS = 8


def removal_figure(table: pd.DataFrame, *, title: str = "") -> list[Axes]:
    """Draw accuracy against k: one panel per (task, protocol, mode), one line per order. Bars are the paired 95%
    intervals of the change from the clean model; random orders are their mean and the range of the middle 95%. A panel
    at chance has no bars, and its title says so.

    Args:
        table: from `lensprune.analysis.removal.removal_curve_table`.

    Raises:
        UserError: nothing to draw.
    """
    if table.empty:
        raise UserError("there are no curves to draw")
    groups = list(table.groupby(["task", "protocol", "mode"], sort=False))
    _, axes = panels(len(groups), sharey=True, title=title)
    short = short_tasks(list(dict.fromkeys(str(task) for (task, *_), _ in groups)))
    names = list(dict.fromkeys(table["order"]))
    look = dict(zip(names, zip(colours(len(names)), MARKERS * len(names), strict=False), strict=True))
    for ax, ((task, protocol, mode), panel) in zip(axes, groups, strict=True):
        known = bool(beats_chance(panel).iloc[0])
        counts = sorted(set(panel["k"]))
        step = 0.008 * (counts[-1] - counts[0])
        for place, (name, curve) in enumerate(panel.groupby("order", sort=False)):
            colour, marker = look[name]
            label = str(name).replace("_", " ") + (f" ({curve['n_orders'].max()})" if name == RANDOM else "")
            ax.plot(curve["k"], curve["accuracy"], marker=marker, markersize=4, color=colour, label=label)
            if name == RANDOM:
                ax.fill_between(
                    curve["k"], curve["random_low"], curve["random_high"], color=colour, alpha=0.15, linewidth=0
                )
            elif known:
                low, high = (curve["accuracy_clean"] + curve[end] for end in ("ci_low", "ci_high"))
                # Bars of orders stand beside each other.
                ax.vlines(
                    curve["k"] + (place + 1) * step,
                    low.clip(0, 1),
                    high.clip(0, 1),
                    color=colour,
                    linewidth=1.1,
                    alpha=0.55,
                )
        ax.axhline(panel["accuracy_clean"].iloc[0], color="0.5", linewidth=0.9, linestyle=":", label="clean")
        if len(counts) <= _MAX_TICKS:
            ax.set_xticks(counts)
        described = f"{protocol}, n {panel['n'].max()}" + ("" if known else ": at chance")
        ax.set_title(panel_title(short[str(task)], described), fontsize=10)
        ax.set(xlabel="parts removed" if mode == "remove" else "parts kept", ylabel="accuracy")
    # Curves may reach any corner of a panel.
    legend_below(axes, axes[0].get_legend_handles_labels()[0])
    return axes


def _alt(table: pd.DataFrame) -> str:
    return f"Lines: accuracy against the number of parts removed or kept, by {table['order'].nunique()} orders"


@register_analysis(
    title="Removal curves",
    draw=lambda table, spec: removal_figure(table, title=spec.model),
    alt=_alt,
    columns={
        "task": "", "protocol": "", "order": "", "k": "d", "accuracy": ".3f", "delta": "+.3f", "ci_low": "+.3f",
        "ci_high": "+.3f", "random_mean": ".3f", "random_low": ".3f", "random_high": ".3f", "p_value": ".2g",
    },
    saved=True,
)  # fmt: skip
def removal(outcomes: Outcomes, task: str | None = None, protocol: str | None = None) -> pd.DataFrame:
    """Accuracy after removing (or keeping only) the first k parts of each order. Bar: paired 95% interval of Δμ; band:
    the middle 95% of the random orders; p: the share of random orders that do at least as badly (or, kept, as well).

    Raises:
        UserError: the run removes no parts in order.
    """
    return removal_curve_table(removal_points(outcomes, task, protocol))
