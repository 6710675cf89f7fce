"""Δμ of variants that have no place on the axis of layers: sets of heads, ranges of layers, custom hooks."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from lensprune.ablation.orders import place_in_order
from lensprune.ablation.variants import CLEAN
from lensprune.analysis.critical import significant
from lensprune.analysis.stopping import level_of
from lensprune.analysis.summary import summarise_cells
from lensprune.errors import UserError
from lensprune.output.drawing.style import legend_below
from lensprune.results.analyses import register_analysis
from lensprune.results.figures.panels import (
    PAIRED,
    Q,
    bars,
    chance_region,
    condition_panels,
    handles,
    heights,
    interval_of,
    set_titles,
    sizes_beside,
    titled,
)
from lensprune.runs.chance import beats_chance
from lensprune.runs.outcomes import Outcomes

__all__ = ["variant_bars", "variants"]

MAX_BARS = 40
"""Variants that are drawn."""
_LONGEST = 40


def variant_bars(data: pd.DataFrame, *, q: float = Q, title: str = "", interval: str = PAIRED) -> list[Axes]:
    """Draw Δμ of each variant as a point with its 95% interval, one row per variant: one panel per (task, protocol).

    Of more than 40 variants those with the largest change are drawn, and the first panel says so. Filled: q of a loss
    or gain ≤ `q`.

    Args:
        data: rows of a summary.
        interval: what ``ci_low`` and ``ci_high`` are, for the legend.

    Raises:
        UserError: nothing to draw.
    """
    if data.empty:
        raise UserError("there is nothing to draw: no variant is measured")
    largest = data.assign(size=data["delta"].abs()).groupby("variant", sort=False)["size"].max()
    kept = set(largest.sort_values(ascending=False, kind="stable").index[:MAX_BARS])
    names = [name for name in largest.index if name in kept]
    frame = data[data["variant"].isin(kept)]
    tall = 1.5 + 0.2 * len(names)
    panels = condition_panels(frame, size=(3.0, tall), alone=(6.4, tall), title=title, sharey=True, sharex=True)
    low, high = heights(panels)
    region = False
    for ax, rows in panels:
        ax.axvline(0, color="0.25", linewidth=0.9, zorder=1)
        ax.grid(axis="x", alpha=0.35)
        region |= chance_region(ax, rows, low, vertical=False)
        places = rows["variant"].map({name: place for place, name in enumerate(names)}).to_numpy(float)
        bars(ax, places, rows, significant(rows, q).to_numpy(), vertical=False)
        sizes_beside(ax, places, rows, vertical=False)
        ax.set(xlim=(low, high), ylim=(len(names) - 0.5, -0.5))
        spec = ax.get_subplotspec()
        if spec is None or spec.is_last_row():
            ax.set_xlabel("Δμ")
        ax.set_yticks(np.arange(len(names)), [_short(name) for name in names])
        ax.tick_params(labelsize=8)
    left = len(largest) - len(names)
    said = f"the {len(names)} largest changes of {len(largest)}" if left else ""
    set_titles((ax, rows, said if ax is panels[0][0] else "") for ax, rows in panels)
    axes = [ax for ax, _ in panels]
    known, sizes = bool(beats_chance(frame).any()), any(text.get_gid() == "n" for ax in axes for text in ax.texts)
    legend_below(axes, handles(q=q, intervals=known, region=region, sizes=sizes, interval=interval))
    return axes


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"


@register_analysis(
    title="Δμ of sets and hooks",
    draw=lambda data, spec: variant_bars(data, q=level_of(spec), title=titled(data, spec), interval=interval_of(spec)),
    alt=lambda data: f"Points with 95% intervals: change of accuracy under {data['variant'].nunique()} variants",
    saved=True,
)
def variants(outcomes: Outcomes, task: str | None = None, protocol: str | None = None) -> pd.DataFrame:
    """Δμ of variants that change no single layer's part, without removal curves' points.

    Filled: q of a loss or gain ≤ 0.05, or ≤ the run's own q; bar: paired 95% interval, with planned looks the repeated
    one; shaded: accuracy at chance or below.

    Raises:
        UserError: there is none.
    """
    summary = summarise_cells(outcomes, task, protocol)
    other = summary["variant"].map(lambda name: name != CLEAN.name and place_in_order(str(name)) is None)
    chosen = summary[other & summary["layer"].isna() & summary["delta"].notna()]
    if chosen.empty:
        raise UserError(
            "there is nothing to draw: every measured variant changes a single layer's part (use depth) or is a point "
            "of a removal curve (use removal)"
        )
    return chosen.reset_index(drop=True)
