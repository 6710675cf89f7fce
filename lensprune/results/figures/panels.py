"""Small multiples of a summary: one panel per (task, protocol), with its title, significant parts and chance."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from lensprune.analysis.sequential import Looks
from lensprune.analysis.stopping import AnyLook, stopping_of
from lensprune.output.drawing.style import GREY, panels, short_tasks
from lensprune.results.figures.protocols import protocol_look
from lensprune.runs.chance import beats_chance
from lensprune.runs.noise import NOISE_NOTE, within_noise
from lensprune.runs.spec import SweepSpec

__all__ = [
    "PAIRED",
    "Panel",
    "Q",
    "bars",
    "chance_region",
    "changed_label",
    "condition_panels",
    "crosses",
    "handles",
    "heights",
    "interval_of",
    "look_of",
    "set_titles",
    "sizes_beside",
    "sizes_of",
    "titled",
]

Q = 0.05
"""Parts with a q up to this are significant."""
PAIRED = "paired 95% interval"
_ACROSS = 3
_MAX_SIZES = 40
_TITLE_WIDTH = 38
_REGION = "0.93"
_BESIDE = 0.9
"""Inches that the figure's title and legend take, however many rows of panels there are."""
_CROSS: dict[str, Any] = {
    "color": "0.25", "marker": "x", "markersize": 6.5, "markeredgewidth": 0.8, "linestyle": "none",
}  # fmt: skip

Panel = tuple[Axes, pd.DataFrame]


def changed_label(frame: pd.DataFrame) -> str:
    """Label of the layer axis in a figure of what changing the parts of `frame` does."""
    part, kind = str(frame["component"].iloc[0]).replace("_", "-"), frame["ablation"].iloc[0]
    return f"changed layer ({kind})" if part == "layer" else f"layer of the changed {part} ({kind})"


def titled(data: pd.DataFrame, spec: SweepSpec) -> str:
    """The model, and how many of the run's variants the rows of `data` are, where others are left out."""
    shown, swept = data["variant"].nunique(), len(spec.variants) - 1
    return spec.model if shown >= swept else f"{spec.model}: {shown} of {swept} variants"


def interval_of(spec: SweepSpec) -> str:
    """What the intervals of a run's summary are."""
    names = {Looks: "repeated 95% interval", AnyLook: "95% interval at any look"}
    return names.get(type(stopping_of(spec.stopping)), PAIRED)


def condition_panels(
    frame: pd.DataFrame, *, size: tuple[float, float], alone: tuple[float, float], title: str = "", **shared: bool
) -> list[Panel]:
    """Axes and rows of each (task, protocol) of a summary: tasks downwards and protocols across, where every task has
    every protocol.

    Args:
        size: inches of a panel; `alone`: of a single one.
        shared: ``sharex``, ``sharey``.
    """
    groups = [rows for _, rows in frame.groupby(["task", "protocol"], sort=False)]
    tasks, protocols = (frame[name].nunique() for name in ("task", "protocol"))
    across = protocols if len(groups) == tasks * protocols and 1 < protocols <= _ACROSS and tasks > 1 else _ACROSS
    rows = -(-len(groups) // across)
    each = alone if len(groups) == 1 else (size[0], size[1] + _BESIDE / rows)
    _, axes = panels(len(groups), size=each, columns=across, title=title, **shared)
    return list(zip(axes, groups, strict=True))


def set_titles(panels: Iterable[tuple[Axes, pd.DataFrame, str]]) -> None:
    """Head each panel with task and protocol, the clean accuracy and a line on what is significant."""
    panels_of = list(panels)
    short = short_tasks(list(dict.fromkeys(str(rows["task"].iloc[0]) for _, rows, _ in panels_of)))
    for ax, rows, line in panels_of:
        first = rows.iloc[0]
        longest = rows.sort_values("n", kind="stable").iloc[-1]
        clean = f"clean {longest['accuracy_clean']:.2f}, n {sizes_of(rows)}"
        if not beats_chance(rows).iloc[0]:
            clean += f": at chance ({first['chance']:.2f})"
        lines = [f"{short[str(first['task'])]}, {first['protocol']}", clean, *textwrap.wrap(line, _TITLE_WIDTH)]
        ax.set_title("\n".join(lines), fontsize=8.5, loc="left")


def sizes_of(rows: pd.DataFrame) -> str:
    """Numbers of items: one, or the smallest and the largest where variants have numbers of their own."""
    low, high = int(rows["n"].min()), int(rows["n"].max())
    return str(low) if low == high else f"{low} to {high}"


def sizes_beside(ax: Axes, places: Any, rows: pd.DataFrame, *, vertical: bool = True) -> None:
    """Write each variant's number of items at the edge of a panel, where they differ and there is room for them."""
    if rows["n"].nunique() == 1 or len(rows) > _MAX_SIZES:
        return
    upright: dict[str, Any] = {
        "fontsize": 4.5,
        "rotation": 90,
        "ha": "center",
        "va": "bottom",
        "transform": ax.get_xaxis_transform(),
    }
    lying: dict[str, Any] = {"fontsize": 7, "ha": "right", "va": "center", "transform": ax.get_yaxis_transform()}
    for place, n in zip(places, rows["n"], strict=True):
        x, y = (place, 0.01) if vertical else (0.99, place)
        ax.text(x, y, str(n), color="0.4", gid="n", zorder=4, **(upright if vertical else lying))


def look_of(rows: pd.DataFrame) -> dict[str, Any]:
    """Colour and marker of a panel's points: those of its protocol, grey where the clean model is at chance."""
    colour, marker = protocol_look(str(rows["protocol"].iloc[0]))
    return {"color": colour if beats_chance(rows).iloc[0] else GREY, "marker": marker}


def bars(ax: Axes, places: Any, rows: pd.DataFrame, filled: Any, *, vertical: bool = True) -> None:
    """Draw Δμ of `rows` at `places`: a point, full where it is `filled`, and its 95% interval, which a panel at chance
    lacks."""
    look = look_of(rows)
    values, low, high = (rows[name].to_numpy(float) for name in ("delta", "ci_low", "ci_high"))
    if beats_chance(rows).iloc[0]:
        lines = ax.vlines if vertical else ax.hlines
        lines(places, low, high, color=look["color"], linewidth=1.1, alpha=0.55, zorder=2)
    for chosen, face in ((~filled, "white"), (filled, look["color"])):
        x, y = (places[chosen], values[chosen]) if vertical else (values[chosen], places[chosen])
        ax.plot(
            x, y, linestyle="none", markersize=4.5, markerfacecolor=face, markeredgewidth=1.1, zorder=3,
            gid="significant" if face != "white" else "others", **look,
        )  # fmt: skip


def crosses(ax: Axes, places: Any, rows: pd.DataFrame) -> None:
    """Cross the points that lie within the noise of half precision."""
    small = within_noise(rows).to_numpy() & beats_chance(rows).to_numpy()
    if small.any():
        ax.plot(places[small], rows["delta"].to_numpy(float)[small], **_CROSS, zorder=4, gid="noise")


def heights(panels: Iterable[Panel], *, headroom: float = 0.0) -> tuple[float, float]:
    """Lowest and highest value that any panel shows, with some room; `headroom`, a share, is added on top."""
    frames = [rows for _, rows in panels]
    shown = [rows["delta"] for rows in frames]
    shown += [rows.loc[beats_chance(rows), name] for rows in frames for name in ("ci_low", "ci_high")]
    values = np.concatenate([[0.0], *(column.to_numpy(float) for column in shown)])
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    room = 0.06 * (high - low or 1.0)
    return low - room, high + room + headroom * (high - low or 1.0)


def chance_region(ax: Axes, rows: pd.DataFrame, low: float, *, vertical: bool = True) -> bool:
    """Shade where accuracy would be at chance or below, down to `low`; whether there is such a place."""
    first = rows.iloc[0]
    edge = float(first["chance"]) - float(first["accuracy_clean"])
    if not beats_chance(rows).iloc[0] or edge <= low:
        return False
    span = ax.axhspan if vertical else ax.axvspan
    span(low, edge, facecolor=_REGION, edgecolor="none", zorder=0, gid="chance")
    return True


def handles(
    *,
    intervals: bool,
    region: bool,
    q: float = Q,
    pale: bool = False,
    noisy: bool = False,
    sizes: bool = False,
    interval: str = PAIRED,
) -> list[Line2D | Patch]:
    """What the legend of such panels says; `pale`: the other points are pale rather than hollow; `noisy`: some are
    crossed; `sizes`: numbers of items are written beside them; `interval`: what the bars are."""
    look: dict[str, Any] = {"color": "0.25", "marker": "o", "markersize": 4.5, "linestyle": "none"}
    shown: list[Line2D | Patch] = [
        Line2D([], [], label=f"q ≤ {q:g}", **look),
        Line2D([], [], label="others", **look, **({"alpha": 0.35} if pale else {"markerfacecolor": "white"})),
    ]
    if noisy:
        shown.append(Line2D([], [], label=NOISE_NOTE, **_CROSS))
    if intervals:
        shown.append(Line2D([], [], color="0.25", alpha=0.55, linewidth=1.1, label=interval))
    if sizes:
        shown.append(Line2D([], [], linestyle="none", label="small numbers: items measured"))
    if region:
        shown.append(Patch(facecolor=_REGION, edgecolor="0.7", linewidth=0.5, label="accuracy at chance or below"))
    return shown
