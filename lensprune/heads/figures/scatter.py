"""Head functions against the losses without each head."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from lensprune.ablation.components import Head
from lensprune.analysis.critical import significant
from lensprune.analysis.overlap import spearman
from lensprune.errors import UserError, unknown_name
from lensprune.heads.scores import SCORES
from lensprune.output.drawing.style import GREY, panel_title, panels
from lensprune.runs.chance import beats_chance

__all__ = ["head_function_scatter"]

_NAMED = 3
_FEWEST = 4


def head_function_scatter(joined: pd.DataFrame, score: str, *, q: float = 0.05, title: str = "") -> list[Axes]:
    """Draw Δμ of each removed head against one head function: one panel per (task, protocol, ablation).

    Heads that lose or gain with q ≤ `q` are dark and the three largest losses are named; the panel's title has
    Spearman's ρ over the heads and its p by permutation (`spearman`). A task at chance is grey. The data is `joined`
    itself.

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
    for ax, ((task, protocol, ablation), rows) in zip(axes, groups, strict=True):
        unclear = not beats_chance(rows).iloc[0]
        clear = significant(rows, q).to_numpy()
        ax.axhline(0, color="0.25", linewidth=0.9, zorder=0)
        ax.scatter(rows.loc[~clear, score], rows.loc[~clear, "delta"], s=18, color=GREY, alpha=0.6, linewidths=0)
        ax.scatter(
            rows.loc[clear, score], rows.loc[clear, "delta"], s=34, color="black", marker="D", linewidths=0,
            label=f"q ≤ {q}" if clear.any() else None,
        )  # fmt: skip
        if clear.any():
            ax.legend(fontsize=7, frameon=False)
        if not unclear:
            for row in rows.sort_values("delta", kind="stable").head(_NAMED).to_dict("records"):
                ax.annotate(
                    Head(row["layer"], row["head"]).label, (row[score], row["delta"]), xytext=(4, 3),
                    textcoords="offset points", fontsize=7,
                )  # fmt: skip
        said = "at chance" if unclear else ""
        if not unclear and len(rows) >= _FEWEST and rows[score].nunique() > 1 and rows["delta"].nunique() > 1:
            rho, p_value = spearman(rows[score].to_numpy(), rows["delta"].to_numpy(), rows["layer"].tolist())
            said = f"ρ {rho:+.2f}, p {p_value:.2g}, {len(rows)} heads"
        ax.set(xlabel=score.replace("_", " "))
        ax.set_title(panel_title(str(task), f"{protocol}, {ablation}" + (f" ({said})" if said else "")), fontsize=9)
    axes[0].set_ylabel("Δμ without the head")
    return axes
