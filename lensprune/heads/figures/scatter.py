"""Head functions against the losses without each head."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from lensprune.ablation.components import Head
from lensprune.analysis.critical import significant
from lensprune.analysis.overlap import spearman
from lensprune.errors import UserError, unknown_name
from lensprune.heads.scores import SCORES
from lensprune.output.drawing.style import GREY, legend_below, name_points, panel_title, panels, short_tasks
from lensprune.runs.chance import beats_chance

__all__ = ["head_function_scatter"]

_NAMED = 3
_FEWEST = 4
_CLEAR: dict[str, Any] = {"color": "black", "marker": "D", "s": 34, "alpha": 1.0}
_OTHERS: dict[str, Any] = {"color": GREY, "marker": "o", "s": 18, "alpha": 0.6}


def head_function_scatter(joined: pd.DataFrame, score: str, *, q: float = 0.05, title: str = "") -> list[Axes]:
    """Draw Δμ of each removed head against one head function: one panel per (task, protocol, ablation).

    Heads whose removal loses or gains accuracy with q ≤ `q` are dark diamonds, and the three largest losses are
    labelled; the panel's title has Spearman's ρ over the heads and its permutation p (`spearman`). A task at chance is
    grey. The data is `joined` itself.

    Args:
        joined: from `lensprune.heads.table.scores_with_effects`.
        score: one of its score columns.

    Raises:
        UserError: an unknown score, or nothing to draw.
    """
    if score not in joined.columns or score not in SCORES:
        raise unknown_name("head score of this table", score, [name for name in joined.columns if name in SCORES])
    frame = joined.dropna(subset=[score, "delta"])
    if frame.empty:
        raise UserError(f"there is nothing to draw: no head has both {score} and a measured loss")
    groups = list(frame.groupby(["task", "protocol", "ablation"], sort=False))
    _, axes = panels(len(groups), size=(4.3, 3.7), columns=3, sharey=True, title=title)
    short = short_tasks(list(dict.fromkeys(str(task) for (task, _, _), _ in groups)))
    for ax, ((task, protocol, ablation), rows) in zip(axes, groups, strict=True):
        unclear = not beats_chance(rows).iloc[0]
        clear = significant(rows, q).to_numpy()
        ax.axhline(0, color="0.25", linewidth=0.9, zorder=0)
        for chosen, look in ((~clear, _OTHERS), (clear, _CLEAR)):
            ax.scatter(rows.loc[chosen, score], rows.loc[chosen, "delta"], linewidths=0, **look)
        said = "at chance" if unclear else ""
        if not unclear and len(rows) >= _FEWEST and rows[score].nunique() > 1 and rows["delta"].nunique() > 1:
            rho, p_value = spearman(rows[score].to_numpy(), rows["delta"].to_numpy(), rows["layer"].tolist())
            said = f"ρ {rho:+.2f}, p {p_value:.2g}, {len(rows)} heads"
        ax.set(xlabel=score.replace("_", " "))
        ax.set_title(
            panel_title(short[str(task)], f"{protocol}, {ablation}" + (f" ({said})" if said else "")), fontsize=9
        )
    axes[0].set_ylabel("Δμ without the head")
    looks = (_CLEAR, f"q ≤ {q}"), (_OTHERS, "others")
    # Not next to points, where it would look like one of them.
    legend_below(axes, [Line2D([], [], linestyle="none", **_in_legend(look), label=text) for look, text in looks])
    for ax, (_, rows) in zip(axes, groups, strict=True):
        if beats_chance(rows).iloc[0]:
            shown = rows.sort_values("delta", kind="stable").head(_NAMED)
            names = [Head(row["layer"], row["head"]).label for row in shown.to_dict("records")]
            name_points(ax, names, shown[score], shown["delta"], (rows[score], rows["delta"]))
    return axes


def _in_legend(look: dict[str, Any]) -> dict[str, Any]:
    return {"markersize": look["s"] ** 0.5, **{name: value for name, value in look.items() if name != "s"}}
