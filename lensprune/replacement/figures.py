"""Figures of replaced weights: each part's effect against depth, and against how much it changed."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from lensprune.errors import UserError
from lensprune.output.drawing.style import colours, name_points, panel_title, panels, short_tasks

__all__ = ["effect_against_weights", "effect_by_depth"]

_EXCHANGED = {
    "attention_output": "layer whose attention output is replaced",
    "attention": "layer whose attention is replaced",
    "mlp": "layer whose MLP is replaced",
    "layer": "replaced layer",
    "head": "layer whose head is replaced",
    "norms": "layer whose norms are replaced",
}
_DIRECTIONS = {"forward": "into the base", "backward": "out of the distilled"}
_MARKERS = {"forward": "o", "backward": "s"}
_NAMED = 3


def _panels(shares: pd.DataFrame, title: str) -> list[tuple[Axes, str, pd.DataFrame]]:
    if shares.empty:
        raise UserError("there is nothing to draw: no replacement was measured")
    groups = list(shares.groupby(["task", "protocol"], sort=False))
    short = short_tasks(list(dict.fromkeys(str(task) for (task, _), _ in groups)))
    _, axes = panels(len(groups), size=(5.4, 4.4), sharey=True, title=title)
    for ax in axes:
        ax.grid(axis="y", alpha=0.35)
    return [
        (ax, panel_title(short[str(task)], str(protocol)), rows)
        for ax, ((task, protocol), rows) in zip(axes, groups, strict=True)
    ]


def _colours() -> dict[str, Any]:
    return dict(zip(_DIRECTIONS, colours(len(_DIRECTIONS)), strict=True))


def _gain_label(rows: pd.DataFrame) -> str:
    first = rows.iloc[0]
    unclear = "" if bool(first["gain_is_clear"]) else ", interval includes 0"
    return f"whole gain {first['gain']:+.2f} (n {first['n']}{unclear})"


def _by_layer(shares: pd.DataFrame) -> bool:
    """Whether every replacement is one part, and these have layers; a cumulative series starts with one part too."""
    return not (shares["component"] == "range").any() and bool(shares["layer"].notna().any())


def _where(rows: pd.DataFrame, by_layer: bool) -> str:
    first = rows.iloc[0]
    if by_layer:
        return _EXCHANGED[str(first["component"])]
    return f"number of replaced parts, beginning with {first['part']}" if len(rows) > 1 else str(first["part"])


def effect_by_depth(shares: pd.DataFrame, *, n_layers: int, title: str = "") -> list[Axes]:
    """Draw each part's effect on accuracy against its layer: one panel per (task, protocol), one line per direction.

    Sets of several parts are at their order in the table instead (cumulative replacements: at the number of parts).
    The band is the 95% interval; the dashed line is the whole gain, distilled − base.

    Args:
        shares: from `lensprune.replacement.shares.gain_shares`.
        n_layers: depth of the model.

    Raises:
        UserError: an empty table.
    """
    axes = []
    single = _by_layer(shares)
    for ax, name_of_panel, panel in _panels(shares, title):
        ax.axhline(0, color="0.25", linewidth=0.9, zorder=1)
        ax.axhline(panel["gain"].iloc[0], color="0.35", linestyle="--", linewidth=1.2, zorder=1)
        handles: list[Line2D | Patch] = [Line2D([], [], color="0.35", linestyle="--", label=_gain_label(panel))]
        for direction, rows in panel.groupby("direction", sort=False):
            name = str(direction)
            points_of = rows[rows["layer"].notna()].sort_values(["layer", "head"]) if single else rows
            x = points_of["layer"].astype(int).to_numpy() if single else np.arange(1, len(points_of) + 1)
            colour, marker = _colours()[name], _MARKERS[name]
            points = single and bool(points_of["head"].notna().any())
            if points:
                ax.scatter(x, points_of["effect"], s=12, marker=marker, color=colour, alpha=0.75, linewidths=0)
            else:
                sns.lineplot(
                    x=x, y=points_of["effect"].to_numpy(), ax=ax, errorbar=None, legend=False, color=colour,
                    marker=marker, markersize=5, linewidth=1.7,
                )  # fmt: skip
                ax.fill_between(x, points_of["ci_low"], points_of["ci_high"], color=colour, alpha=0.15, linewidth=0)
            style: Literal["none", "-"] = "none" if points else "-"
            handles.append(Line2D([], [], color=colour, marker=marker, linestyle=style, label=_DIRECTIONS[name]))
        ax.set_title(name_of_panel, fontsize=10)
        ax.set_xlabel(_where(panel[panel["direction"] == panel["direction"].iloc[0]], single))
        if single:
            ax.set_xlim(-0.5, n_layers - 0.5)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        if not (single and bool(panel["head"].notna().any())):
            handles.append(Patch(facecolor="0.7", alpha=0.4, label="95% interval"))
        # Below the panel: inside it there is no corner that a line or a band may not reach.
        ax.legend(handles=handles, fontsize=8, frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.14))
        axes.append(ax)
    axes[0].set_ylabel("effect of the part on accuracy (Δμ)")
    if single and bool(shares["head"].notna().any()):
        _name_largest(axes, shares, "layer")
    return axes


def _name_largest(axes: list[Axes], shares: pd.DataFrame, x: str) -> None:
    """Name the parts with the largest effects in each panel."""
    for ax, (_, panel) in zip(axes, shares.groupby(["task", "protocol"], sort=False), strict=True):
        known = panel[panel[x].notna()]
        largest = known.loc[known["effect"].abs().sort_values(ascending=False, kind="stable").index]
        largest = largest.drop_duplicates("part").head(_NAMED)
        name_points(ax, list(largest["part"]), largest[x], largest["effect"], (known[x], known["effect"]))


def effect_against_weights(shares: pd.DataFrame, *, title: str = "") -> list[Axes]:
    """Draw each part's effect against ‖ΔW‖ of its weights: one panel per (task, protocol), one colour per direction.
    The three parts with the largest effects are named.

    Raises:
        UserError: an empty table.
    """
    axes = []
    for ax, name_of_panel, panel in _panels(shares, title):
        ax.axhline(0, color="0.25", linewidth=0.9, zorder=1)
        for direction, rows in panel.groupby("direction", sort=False):
            name = str(direction)
            x, y = rows["weight_change"].to_numpy(), rows["effect"].to_numpy()
            errors = [y - rows["ci_low"].to_numpy(), rows["ci_high"].to_numpy() - y]
            ax.errorbar(
                x, y, yerr=[abs(e) for e in errors], fmt=_MARKERS[name], color=_colours()[name], markersize=5,
                elinewidth=0.7, alpha=0.8, label=_DIRECTIONS[name],
            )  # fmt: skip
        ax.set_title(name_of_panel, fontsize=10)
        ax.set_xlabel("‖ΔW‖ of the replaced part")
        ax.legend(fontsize=8, frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.14))
        axes.append(ax)
    axes[0].set_ylabel("effect of the part on accuracy (Δμ)")
    _name_largest(axes, shares, "weight_change")
    return axes
