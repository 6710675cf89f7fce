"""The figure of a sweep: Δμ against depth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from lensprune.ablation.components import Head
from lensprune.analysis.critical import significant
from lensprune.analysis.stopping import level_of
from lensprune.analysis.summary import summarise_cells
from lensprune.errors import UserError
from lensprune.output.drawing.style import legend_below, name_points
from lensprune.output.plain_text import in_ranges
from lensprune.results.analyses import register_analysis
from lensprune.results.figures.panels import (
    PAIRED,
    Q,
    bars,
    chance_region,
    changed_label,
    condition_panels,
    crosses,
    handles,
    heights,
    interval_of,
    look_of,
    set_titles,
    sizes_beside,
    titled,
)
from lensprune.runs.chance import beats_chance
from lensprune.runs.noise import within_noise
from lensprune.runs.outcomes import Outcomes

__all__ = ["delta_by_depth", "delta_by_depth_data", "depth"]

_BANDS = ((0.0, 0.3, "first 30%"), (0.3, 0.7, "middle"), (0.7, 1.0, "last 30%"))
_NAMED_HEADS = 5
_FEW = 3
"""A sweep of fewer than one layer in so many is drawn on an axis of its own layers."""


def delta_by_depth_data(
    summary: pd.DataFrame, component: str | None = None, ablation: str | None = None
) -> pd.DataFrame:
    """The rows of `summary` that `delta_by_depth` draws: one kind of component and ablation, each of one layer.

    Raises:
        UserError: nothing to draw.
    """
    frame = summary[summary["layer"].notna() & summary["delta"].notna()]
    if component is not None:
        frame = frame[frame["component"] == component]
    if ablation is not None:
        frame = frame[frame["ablation"] == ablation]
    if frame.empty:
        raise UserError("there is nothing to draw against depth: no measured variant changes exactly one layer's part")
    first = frame.iloc[0]
    return frame[(frame["component"] == first["component"]) & (frame["ablation"] == first["ablation"])]


def delta_by_depth(
    summary: pd.DataFrame,
    *,
    n_layers: int | None = None,
    component: str | None = None,
    ablation: str | None = None,
    q: float = Q,
    title: str = "",
    interval: str = PAIRED,
) -> list[Axes]:
    """Draw Δμ against the layer that was changed: one panel per (task, protocol), a point with its 95% interval per
    layer.

    Layers that lose or gain with q ≤ `q` are filled, and the panel's title names them. Where the clean model is at
    chance points are grey, without intervals, and the title says so: such a Δμ means nothing. Crossed points lie within
    the noise of half precision (`lensprune.runs.noise`). The shaded part is where accuracy would be at chance or below.
    Heads are points side by side at their layer; the strongest of those with q ≤ `q` are named, without any the three
    that lose most. Vertical lines part the first 30%, the middle and the last 30% of the layers.

    Args:
        summary: from `summarise`.
        n_layers: depth of the model; ``None`` takes the last layer that was swept.
        component: draw these (``layer``, ``head``, …); ``None`` takes the first kind in the table.
        ablation: draw this ablation; ``None`` takes the first one in the table.
        interval: what ``ci_low`` and ``ci_high`` are, for the legend.

    Returns:
        One Axes per (task, protocol), all of one figure.

    Raises:
        UserError: nothing to draw.
    """
    frame = delta_by_depth_data(summary, component, ablation)
    depth = n_layers or int(frame["layer"].max()) + 1
    measured = sorted(set(frame["layer"].astype(int)))
    few = len(measured) * _FEW < depth
    panels = condition_panels(frame, size=(2.9, 2.35), alone=(6.4, 4.2), title=title, sharey=True, sharex=True)
    low, high = heights(panels, headroom=0.0 if few else 0.1)
    several = bool(frame["head"].notna().any())
    region, labelled = False, []
    panels = [(ax, rows.sort_values(["layer", "head"])) for ax, rows in panels]
    for ax, rows in panels:
        ax.set(ylim=(low, high))
        ax.axhline(0, color="0.25", linewidth=0.9, zorder=1)
        ax.grid(axis="y", alpha=0.35)
        region |= chance_region(ax, rows, low)
        if few:
            ax.set(xlim=(measured[0] - 0.8, measured[-1] + 0.8), xticks=measured)
        else:
            _bands(ax, depth)
        labelled.append((ax, rows, (_heads if several else _layers)(ax, rows, q)))
    set_titles(labelled)
    axes = [ax for ax, _ in panels]
    _label(axes, frame, depth)
    known = bool(beats_chance(frame).any())
    noisy = bool((beats_chance(frame) & within_noise(frame)).any())
    shown = {"intervals": known and not several, "sizes": any(_sized(ax) for ax in axes)}
    legend_below(axes, handles(q=q, region=region, pale=several, noisy=noisy, interval=interval, **shown))
    if several:
        for ax, rows in panels:
            _name_heads(ax, rows, q)
    return axes


def _sized(ax: Axes) -> bool:
    return any(text.get_gid() == "n" for text in ax.texts)


def _label(axes: Sequence[Axes], frame: pd.DataFrame, depth: int) -> None:
    removed = frame["component"].iloc[0] == "layer" and frame["ablation"].iloc[0] in ("skip", "zero")
    for ax in axes:
        spec = ax.get_subplotspec()
        if spec is None or spec.is_last_row():
            ax.set_xlabel(f"layer removed (of {depth})" if removed else changed_label(frame))
        if spec is None or spec.is_first_col():
            ax.set_ylabel("Δμ")
        ax.tick_params(labelsize=8)


def _bands(ax: Axes, depth: int) -> None:
    ax.set_xlim(-0.5, depth - 0.5)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    for begin, end, name in _BANDS:
        if begin:
            ax.axvline(begin * depth - 0.5, color="0.6", linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
        ax.text(
            (begin + end) / 2, 0.985, name, transform=ax.transAxes, ha="center", va="top", fontsize=6.5, color="0.4"
        )  # fmt: skip


def _layers(ax: Axes, rows: pd.DataFrame, q: float) -> str:
    """Draw one layer after the other; returns what the title says of those that are significant."""
    layers, chosen = rows["layer"].astype(int).to_numpy(), significant(rows, q).to_numpy()
    # Layers that were not measured part the line.
    whole = pd.Series(rows["delta"].to_numpy(), layers).reindex(range(layers.min(), layers.max() + 1))
    ax.plot(whole.index, whole, color=look_of(rows)["color"], linewidth=0.9, alpha=0.6, zorder=2, gid="delta")
    bars(ax, layers, rows, chosen)
    crosses(ax, layers, rows)
    sizes_beside(ax, layers, rows)
    return _said(rows, layers, chosen)


def _said(rows: pd.DataFrame, layers: np.ndarray, chosen: np.ndarray) -> str:
    if not beats_chance(rows).iloc[0]:
        return ""
    lost, won = (layers[chosen & sign] for sign in (rows["delta"] < 0, rows["delta"] > 0))
    parts = [f"needs {in_ranges(lost)}"] * bool(len(lost)) + [f"better without {in_ranges(won)}"] * bool(len(won))
    return "; ".join(parts) or "none significant"


def _spread(rows: pd.DataFrame) -> np.ndarray:
    """Places of heads on the axis: side by side at their layer."""
    heads = rows["head"].astype(int).to_numpy()
    width = heads.max() + 1
    return rows["layer"].astype(int).to_numpy() + 0.7 * ((heads + 0.5) / width - 0.5)


def _heads(ax: Axes, rows: pd.DataFrame, q: float) -> str:
    """Draw heads at their layers; returns how many are significant, for the title."""
    strong = significant(rows, q).to_numpy()
    places, look = _spread(rows), look_of(rows)
    for chosen, alpha, size in ((~strong, 0.35, 9), (strong, 1.0, 24)):
        ax.scatter(places[chosen], rows.loc[chosen, "delta"], s=size, alpha=alpha, linewidths=0, **look)
    crosses(ax, places, rows)
    if not beats_chance(rows).iloc[0]:
        return ""
    return f"{int(strong.sum())} of {len(rows)} significant"


def _name_heads(ax: Axes, rows: pd.DataFrame, q: float) -> None:
    if not beats_chance(rows).iloc[0] or str(rows["component"].iloc[0]) != "head":
        return
    rows = rows.assign(place=_spread(rows)).sort_values("delta", kind="stable")
    chosen = rows[significant(rows, q)]
    strongest = chosen.loc[chosen["delta"].abs().sort_values(ascending=False, kind="stable").index].head(_NAMED_HEADS)
    shown = strongest if len(chosen) else rows.head(3)
    names = [Head(int(layer), int(head)).label for layer, head in zip(shown["layer"], shown["head"], strict=True)]
    name_points(ax, names, shown["place"], shown["delta"], (rows["place"], rows["delta"]))


def _alt(data: pd.DataFrame) -> str:
    return (
        f"Points with 95% intervals: change of accuracy against the layer that was changed, for "
        f"{data['task'].nunique()} tasks, one panel per task and protocol"
    )


@register_analysis(
    title="Δμ against depth",
    draw=lambda data, spec: delta_by_depth(
        data, n_layers=spec.n_layers, q=level_of(spec), title=titled(data, spec), interval=interval_of(spec)
    ),
    alt=_alt,
    saved=True,
)
def depth(outcomes: Outcomes, task: str | None = None, protocol: str | None = None) -> pd.DataFrame:
    """Δμ against depth. Filled: q of a loss or gain ≤ 0.05, or ≤ the run's own q; bar: paired 95% interval, with
    planned looks the repeated one; shaded: accuracy at chance or below; grey: the clean model is at chance; crossed:
    within the noise of half precision. Other kinds of parts and ablations, sets and hooks are left out, and the title
    says so."""
    return delta_by_depth_data(summarise_cells(outcomes, task, protocol))
