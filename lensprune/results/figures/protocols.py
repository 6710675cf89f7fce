"""Protocols side by side: what each removal costs under one and under the other, on the same items."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from lensprune.analysis.protocol_gap import clear_gaps, protocol_gap, task_gap
from lensprune.errors import UserError
from lensprune.output.drawing.style import GREY, MARKERS, colours, panel_title, panels, short_tasks
from lensprune.protocols.registry import protocol_names
from lensprune.results.analyses import register_analysis
from lensprune.runs.chance import beats_chance
from lensprune.runs.outcomes import Outcomes

__all__ = ["open_book_gap_by_depth", "open_closed", "protocol_look", "protocol_pairs", "protocols"]

_SHALLOW_TO_DEEP = "viridis"


def protocol_look(name: str) -> tuple[Any, str]:
    """Colour and marker of a protocol, the same in every figure; black and ``d`` for one that is not registered."""
    names = protocol_names()
    if name not in names:
        return "black", "d"
    place = names.index(name)
    return colours(len(names))[place], MARKERS[place % len(MARKERS)]


def _measured(gap: pd.DataFrame, what: str) -> pd.DataFrame:
    frame = gap[gap["layer"].notna() & gap["gap"].notna()]
    if frame.empty:
        raise UserError(f"there is nothing to draw: {what}")
    return frame.astype({"layer": int})


def _hides(gap: pd.DataFrame, q: float) -> bool:
    """Whether a clear gap is left unmarked since one side is so near chance that little can be lost there."""
    return bool((clear_gaps(gap.assign(floor=False), q) & gap["floor"].astype(bool)).any())


def protocol_pairs(gap: pd.DataFrame, *, q: float = 0.05, title: str = "") -> list[Axes]:
    """Draw Δμ under one protocol against Δμ under another, a point for each changed part, coloured by its layer.

    On the diagonal both protocols lose the same. A ring marks a gap with q ≤ `q` in either direction. A pair
    of which one side is at chance is drawn in grey, without rings, and says so; one with a side near chance has no
    rings either. The data is `gap` itself.

    Args:
        gap: from `Run.protocol_gap`.

    Raises:
        UserError: nothing to draw.
    """
    frame = _measured(gap, "no changed part of one layer is measured under two protocols")
    groups = list(frame.groupby(["task_a", "protocol_a", "protocol_b"], sort=False))
    _, axes = panels(len(groups), size=(4.4, 3.9), columns=3, title=title)
    short = short_tasks(list(dict.fromkeys(str(task) for (task, _, _), _ in groups)))
    low = float(min(frame["delta_a"].min(), frame["delta_b"].min(), -0.05))
    high = float(max(frame["delta_a"].max(), frame["delta_b"].max(), 0.05))
    room = 0.06 * (high - low)
    rng = np.random.default_rng(0)
    n_layers = int(frame["layer"].max()) + 1
    for ax, ((task, first, second), rows) in zip(axes, groups, strict=True):
        unclear = not beats_chance(rows).iloc[0]
        ax.plot([low, high], [low, high], color="0.6", linewidth=0.9, linestyle=":", zorder=0)
        ax.axhline(0, color="0.8", linewidth=0.8, zorder=0)
        ax.axvline(0, color="0.8", linewidth=0.8, zorder=0)
        # Accuracies of n items fall on a grid: half a step of shift shows points that lie on each other.
        step = 0.35 / int(rows["n"].iloc[0])
        x, y = (rows[name].to_numpy() + rng.uniform(-step, step, len(rows)) for name in ("delta_a", "delta_b"))
        by_layer = {"c": rows["layer"], "cmap": _SHALLOW_TO_DEEP, "vmin": 0, "vmax": n_layers - 1}
        look: dict[str, Any] = {"color": GREY} if unclear else by_layer
        points = ax.scatter(x, y, s=24, alpha=0.85, linewidths=0, **look)
        marked = clear_gaps(rows, q).to_numpy()
        ax.scatter(x[marked], y[marked], s=70, facecolors="none", edgecolors="black", linewidths=1.1)
        if not unclear:
            ax.figure.colorbar(points, ax=ax, label="layer", shrink=0.8, ticks=MaxNLocator(integer=True))
        note = ", at chance" if unclear else ", near chance: no rings" if _hides(rows, q) else ""
        ax.set(
            title=panel_title(short[str(task)], f"(n {int(rows['n'].iloc[0])}{note})"),
            xlabel=f"Δμ under {first}",
            ylabel=f"Δμ under {second}",
            xlim=(low - room, high + room),
            ylim=(low - room, high + room),
        )
        ax.title.set_fontsize(9)
    return axes


def open_book_gap_by_depth(
    gap: pd.DataFrame, *, n_layers: int | None = None, q: float = 0.05, title: str = ""
) -> list[Axes]:
    """Draw Δμ with the book closed (dashed) and open (solid) against the layer: one panel per protocol.

    A dot at the foot marks a layer whose two losses differ with q ≤ `q`. A protocol at chance on one side is grey,
    one near chance on one side has no dots.
    Several heads of a layer are drawn as their mean. The data is `gap` itself.

    Args:
        gap: from `Run.open_book_gap`: `a` is the closed-book task, `b` the open-book one.

    Raises:
        UserError: nothing to draw.
    """
    frame = _measured(gap, "no changed part of one layer is measured with the book closed and open")
    groups = list(frame.groupby("protocol_b", sort=False))
    _, axes = panels(len(groups), size=(4.8, 3.8), columns=3, sharey=True, title=title)
    depth = n_layers or int(frame["layer"].max()) + 1
    foot = float(min(frame["delta_a"].min(), frame["delta_b"].min())) - 0.06
    for ax, (protocol, rows) in zip(axes, groups, strict=True):
        unclear = not beats_chance(rows).iloc[0]
        # A panel may be named by a task in a line above its protocol.
        name = str(protocol).splitlines()[-1]
        colour, marker = protocol_look(name)
        colour = GREY if unclear else colour
        ax.axhline(0, color="0.25", linewidth=0.9, zorder=0)
        means = rows.groupby("layer")[["delta_a", "delta_b"]].mean()
        for column, task, dashes in (("delta_a", "task_a", "--"), ("delta_b", "task_b", "-")):
            ax.plot(
                means.index, means[column], color=colour, linestyle=dashes, marker=marker, markersize=4,
                markerfacecolor="white" if dashes == "--" else colour, label=str(rows[task].iloc[0]),
            )  # fmt: skip
        marked = sorted(set(rows.loc[clear_gaps(rows, q), "layer"]))
        if marked:
            feet = [foot] * len(marked)
            ax.plot(marked, feet, "o", color="black", markersize=4, label=f"they differ, q ≤ {q}")
        notes = ["other items" if pd.isna(rows["n"].iloc[0]) else f"n {int(rows['n'].iloc[0])}"]
        notes += ["at chance"] if unclear else ["near chance: no dots"] if _hides(rows, q) else []
        ax.set(title=f"{protocol} ({', '.join(notes)})", xlabel="layer", xlim=(-0.5, depth - 0.5))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        # Below the panel: inside it there is no corner that a line may not reach.
        ax.legend(fontsize=8, frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.16))
        ax.title.set_fontsize(9)
    axes[0].set_ylabel("Δμ (accuracy − clean accuracy)")
    return axes


@register_analysis(
    title="Δμ under two protocols",
    draw=lambda gap, spec: protocol_pairs(gap, title=spec.model),
    alt=lambda gap: (
        "Scatter plots: change of accuracy under one protocol against another, a point for each changed part"
    ),
)
def protocols(outcomes: Outcomes, task: str | None = None, protocol: str | None = None) -> pd.DataFrame:
    """Each changed part under two protocols, on the same items. Diagonal: equal losses; ring: the gap has q ≤ 0.05.
    Points are shifted by up to a third of an item so that none hides another."""
    if protocol is not None:
        raise UserError(f"protocols are compared with each other: leave out protocol {protocol!r}")
    gap = protocol_gap(outcomes, task)
    gap = gap[gap["layer"].notna()]
    if gap.empty:
        raise UserError("there is nothing to draw: no changed part of one layer is measured under two protocols")
    return gap


@register_analysis(
    title="Closed and open book",
    draw=lambda gap, spec: open_book_gap_by_depth(gap, n_layers=spec.n_layers, title=spec.model),
    alt=lambda gap: (
        f"Line chart: change of accuracy on {gap['task_a'].iloc[0]} and on {gap['task_b'].iloc[0]} against the layer"
    ),
)
def open_closed(outcomes: Outcomes, task: str | None = None, protocol: str | None = None) -> pd.DataFrame:
    """Book closed (dashed) against open (solid), on the same items."""
    tasks = outcomes.spec.tasks
    names = [task_spec.name for task_spec in tasks]
    pairs = [
        (task_spec.closed_book, task_spec.name)
        for task_spec in tasks
        if task_spec.closed_book in names and task in (None, task_spec.closed_book, task_spec.name)
    ]
    if not pairs:
        raise UserError(
            "there is nothing to draw: the run needs a task with the book closed and open, like facts and facts_open"
        )
    gap = task_gap(outcomes, *pairs[0])
    gap = gap[gap["layer"].notna()]
    if gap.empty:
        raise UserError(
            "there is nothing to draw: no changed part of one layer is measured with the book closed and open"
        )
    return gap if protocol is None else gap[gap["protocol_b"] == protocol]
