"""The figure of a sweep: Δμ against depth."""

from __future__ import annotations

from typing import Literal

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from lensprune.analysis.summary import summarise_cells
from lensprune.errors import UserError
from lensprune.output.drawing.style import GREY, panel_title, panels
from lensprune.results.analyses import register_analysis
from lensprune.results.figures.protocols import protocol_look
from lensprune.runs.chance import beats_chance
from lensprune.runs.noise import within_noise
from lensprune.runs.outcomes import Outcomes

__all__ = ["delta_by_depth", "delta_by_depth_data", "depth"]


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
    title: str = "",
) -> list[Axes]:
    """Draw Δμ against the layer that was changed: one panel per task, one line per protocol, the interval as a band.

    A protocol under which the clean model is at chance is drawn grey and dashed, without a band, and says so: its Δμ
    means nothing. Hollow points lie within the noise of half precision (`lensprune.runs.noise`). A dotted line shows
    where a protocol's accuracy would be at chance. Heads are drawn as points, several to a layer. Vertical lines part
    the first 30%, the middle and the last 30% of the layers.

    Args:
        summary: from `summarise`.
        n_layers: depth of the model; ``None`` takes the last layer that was swept.
        component: draw these (``layer``, ``head``, …); ``None`` takes the first kind in the table.
        ablation: draw this ablation; ``None`` takes the first one in the table.

    Returns:
        One Axes a task, all of one figure.

    Raises:
        UserError: nothing to draw.
    """
    frame = delta_by_depth_data(summary, component, ablation)
    tasks = list(dict.fromkeys(frame["task"]))
    depth = n_layers or int(frame["layer"].max()) + 1
    size = (6.4 if len(tasks) == 1 else 4.6, 4.9)
    _, axes = panels(len(tasks), size=size, sharey=True, title=title)
    for ax, task in zip(axes, tasks, strict=True):
        handles = _panel(ax, frame[frame["task"] == task], depth)
        part, kind = str(frame["component"].iloc[0]).replace("_", "-"), frame["ablation"].iloc[0]
        where = (
            "layer removed" if part == "layer" and kind in ("skip", "zero") else f"layer of the changed {part} ({kind})"
        )
        ax.set_title(panel_title(task), fontsize=10)
        ax.set(xlabel=where, xlim=(-0.5, depth - 0.5))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid(axis="y", alpha=0.35)
        # Below the panel: inside it there is no corner that a line or a band may not reach.
        ax.legend(handles=handles, fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    axes[0].set_ylabel("Δμ (accuracy − clean accuracy)")
    return axes


def _panel(ax: Axes, frame: pd.DataFrame, depth: int) -> list[Line2D | Patch]:
    ax.axhline(0, color="0.25", linewidth=0.9, zorder=1)
    for part in (0.3, 0.7):
        ax.axvline(part * depth - 0.5, color="0.75", linewidth=0.9, linestyle=(0, (1, 3)), zorder=0)
    handles: list[Line2D | Patch] = []
    n_lines = 0
    protocols = list(dict.fromkeys(frame["protocol"]))
    for place, protocol in enumerate(protocols):
        rows = frame[frame["protocol"] == protocol].sort_values(["layer", "head"])
        at_chance = not beats_chance(rows).iloc[0]
        colour, marker = protocol_look(protocol)
        colour = GREY if at_chance else colour
        clean, chance = rows["accuracy_clean"].iloc[0], rows["chance"].iloc[0]
        n = " to ".join(map(str, dict.fromkeys([int(rows["n"].min()), int(rows["n"].max())])))
        label = f"{protocol}: clean {clean:.2f}, n {n}" + (f" (at chance {chance:.2f})" if at_chance else "")
        dashes: Literal["-", "--", "none"] = "--" if at_chance else "-"
        layers = rows["layer"].astype(int).to_numpy()
        if rows["head"].notna().any():
            dashes = "none"
            shift = 0.66 * ((place + 0.5) / len(protocols) - 0.5)
            ax.scatter(
                layers + shift,
                rows["delta"],
                s=11,
                marker=marker,
                color=colour,
                alpha=0.4 if at_chance else 0.75,
                linewidths=0,
            )
        else:
            look = {"linewidth": 1.1, "alpha": 0.7} if at_chance else {"linewidth": 1.7, "alpha": 1.0}
            line = {"color": colour, "linestyle": dashes, "marker": marker, "markersize": 4.5, **look}
            sns.lineplot(x=layers, y=rows["delta"].to_numpy(), ax=ax, errorbar=None, legend=False, **line)
            if not at_chance:
                ax.fill_between(
                    layers, rows["ci_low"].to_numpy(), rows["ci_high"].to_numpy(), color=colour, alpha=0.15, linewidth=0
                )
        small = within_noise(rows).to_numpy()
        if not at_chance and small.any():
            shifted = layers[small] + (shift if rows["head"].notna().any() else 0.0)
            ax.scatter(
                shifted,
                rows["delta"][small],
                s=20,
                marker=marker,
                facecolor="white",
                edgecolor=colour,
                linewidth=0.9,
                zorder=3,
            )
        handles.append(Line2D([], [], color=colour, linestyle=dashes, marker=marker, markersize=4.5, label=label))
        if not at_chance:
            n_lines += 1
            if chance > 0:
                ax.axhline(chance - clean, color=colour, linestyle=":", linewidth=1, zorder=1)
    if n_lines and not frame["head"].notna().any():
        handles.append(Patch(facecolor="0.7", alpha=0.4, label="95% interval"))
    handles.append(Line2D([], [], color="0.75", linestyle=(0, (1, 3)), linewidth=0.9, label="30% and 70% of the depth"))
    if (beats_chance(frame) & within_noise(frame)).any():
        handles.append(
            Line2D(
                [],
                [],
                color="0.4",
                linestyle="",
                marker="o",
                markersize=4.5,
                markerfacecolor="white",
                label="within noise",
            )
        )
    if (beats_chance(frame) & (frame["chance"] > 0)).any():
        handles.append(Line2D([], [], color="0.4", linestyle=":", linewidth=1, label="accuracy at chance"))
    return handles


def _alt(data: pd.DataFrame) -> str:
    return (
        f"Line chart: change of accuracy against the layer that was changed, for {data['task'].nunique()} tasks, "
        "one line per protocol"
    )


@register_analysis(
    title="Δμ against depth",
    draw=lambda data, spec: delta_by_depth(data, n_layers=spec.n_layers, title=spec.model),
    alt=_alt,
    saved=True,
)
def depth(outcomes: Outcomes, task: str | None = None, protocol: str | None = None) -> pd.DataFrame:
    """Δμ against depth by protocol. Band: paired 95% interval; dotted: where accuracy would be at chance; grey dashes:
    the clean model is at chance; hollow: within the noise of half precision."""
    return delta_by_depth_data(summarise_cells(outcomes, task, protocol))
