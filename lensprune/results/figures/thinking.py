"""The figure of thinking: change of its length against depth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from lensprune.analysis.thinking_length import thinking_length
from lensprune.output.drawing.style import panel_title, panels
from lensprune.results.analyses import register_analysis
from lensprune.results.figures.panels import changed_label
from lensprune.results.figures.protocols import protocol_look

__all__ = ["length_by_depth"]


def length_by_depth(lengths: pd.DataFrame, *, title: str = "") -> list[Axes]:
    """Draw the change of the thinking's length against the layer that was changed: one panel per task.

    Where no variant changes exactly one layer's part, variants stand side by side. The bar is the 95% interval. A
    hollow point says that less of the thinking ended than the clean model's, so that its length is cut short by the
    limit on new tokens. Heads are drawn as points, several to a layer.

    Args:
        lengths: from `thinking_length`.
    """
    by_layer = bool(lengths["layer"].notna().any())
    frame = lengths[lengths["layer"].notna()] if by_layer else lengths
    tasks = list(dict.fromkeys(frame["task"]))
    _, axes = panels(len(tasks), size=(6.4 if len(tasks) == 1 else 4.6, 4.0), title=title)
    for ax, task in zip(axes, tasks, strict=True):
        of_task = frame[frame["task"] == task]
        ax.axhline(0, color="0.25", linewidth=0.9, zorder=1)
        for protocol, rows in of_task.groupby("protocol", sort=False):
            _line(ax, str(protocol), rows.sort_values(["layer", "head"]) if by_layer else rows)
        ax.set_title(panel_title(str(task)), fontsize=10)
        if by_layer:
            ax.set(xlabel=changed_label(of_task))
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        else:
            names = list(dict.fromkeys(of_task["variant"]))
            ax.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
        ax.grid(axis="y", alpha=0.35)
        ax.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    axes[0].set_ylabel("Δ length of thinking (tokens)")
    return axes


def _line(ax: Axes, protocol: str, rows: pd.DataFrame) -> None:
    colour, marker = protocol_look(protocol)
    by_layer = bool(rows["layer"].notna().all())
    layers = rows["layer"].astype(int).to_numpy() if by_layer else np.arange(len(rows))
    delta = rows["delta"].to_numpy(float)
    label = f"{protocol}: clean {rows['tokens_clean'].iloc[0]:.0f} tokens, n {int(rows['n'].iloc[0])}"
    if by_layer and rows["head"].isna().all():
        # A band would leave out an interval between two layers that have none.
        low, high = (rows[end].to_numpy(float) for end in ("ci_low", "ci_high"))
        ax.errorbar(layers, delta, [delta - low, high - delta], color=colour, linewidth=0.9)
    whole = (rows["ended"] >= rows["ended_clean"]).to_numpy(bool)
    ax.plot(layers[whole], delta[whole], color=colour, marker=marker, markersize=4.5, linestyle="none", label=label)
    hollow: Any = {"marker": marker, "markersize": 5.5, "markerfacecolor": "white", "linestyle": "none"}
    if not whole.all():
        ax.plot(layers[~whole], delta[~whole], color=colour, label="more is cut off than in the clean model", **hollow)


register_analysis(
    title="Length of thinking",
    draw=lambda lengths, spec: length_by_depth(lengths, title=spec.model),
    alt=lambda lengths: (
        f"Line chart: change of the thinking's length against the layer that was changed, for "
        f"{lengths['task'].nunique()} tasks"
    ),
    columns={
        "variant": "", "task": "", "protocol": "", "n": "d", "tokens": ".1f", "tokens_clean": ".1f", "delta": "+.1f",
        "ci_low": "+.1f", "ci_high": "+.1f", "q_value": ".2g", "ended": ".2f", "ended_clean": ".2f",
    },
    saved=True,
)(thinking_length)  # fmt: skip
