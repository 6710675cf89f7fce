"""Heatmap of layers × heads: what the model loses without each head, and which losses are not noise."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from lensprune.ablation.components import parts
from lensprune.analysis.critical import significant
from lensprune.analysis.stopping import level_of
from lensprune.analysis.summary import summarise_cells
from lensprune.errors import UserError
from lensprune.output.drawing.heatmap import colour_cells, label_places
from lensprune.output.drawing.style import SIGNED, panel_title, panels, short_tasks
from lensprune.registry import in_words
from lensprune.results.analyses import register_analysis
from lensprune.results.figures.panels import sizes_of
from lensprune.runs.chance import beats_chance
from lensprune.runs.outcomes import Outcomes

__all__ = ["head_effect_maps", "head_effect_maps_data", "heads"]

_COLUMNS = 3


def head_effect_maps_data(summary: pd.DataFrame, *, q: float = 0.05) -> pd.DataFrame:
    """What `head_effect_maps` draws: task, protocol, component, ablation, layer, head, n, delta, q_loss, q_gain,
    significant, at_chance.

    Raises:
        UserError: no head, or other part of which a layer has several, was removed.
    """
    frame = summary[summary["delta"].notna() & summary["head"].notna()]
    if frame.empty:
        words = in_words([part.index_word for part in parts() if part.index is not None])
        raise UserError(f"there is nothing to draw: the run removes no single {words}")
    columns = ["task", "protocol", "component", "ablation", "layer", "head", "n", "delta", "q_loss", "q_gain"]
    columns.append("at_chance")
    kept = frame[columns].assign(significant=significant(frame, q))
    # Variants of other names may make the same change, with the same numbers.
    kept = kept.drop_duplicates(["task", "protocol", "component", "ablation", "layer", "head"])
    return kept.astype({"layer": int, "head": int}).reset_index(drop=True)


def head_effect_maps(
    summary: pd.DataFrame,
    *,
    n_layers: int | None = None,
    n_heads: int | None = None,
    q: float = 0.05,
    title: str = "",
) -> list[Axes]:
    """Draw Δμ of each removed head: one map a (task, protocol), layers upwards, one scale for all, 0 in the middle.

    A dot marks a loss or a gain with q ≤ `q`; where the clean model is at chance there are no dots and the
    title says so. Layers that were not swept are left out, as the label of the axis says; heads that were not are grey.

    Args:
        n_layers, n_heads: of the model; ``None`` takes the last ones swept.

    Raises:
        UserError: no head, or other part of which a layer has several, was removed.
    """
    frame = head_effect_maps_data(summary, q=q)
    # Maps of one kind: a run that removes heads in several ways, or groups too, gets a panel for each.
    groups = list(frame.groupby(["task", "protocol", "component", "ablation"], sort=False))
    depth = n_layers or int(frame["layer"].max()) + 1
    width = max(int(frame["head"].max()) + 1, n_heads if n_heads and (frame["component"] == "head").all() else 0)
    layers = sorted(set(frame["layer"]))
    largest = float(frame["delta"].abs().max()) or 1.0
    words = {part.name: part.index_word for part in parts()}
    size = (min(2.4 + 0.24 * width, 7.0), min(1.8 + 0.17 * len(layers), 8.0))
    _, axes = panels(len(groups), size=size, columns=_COLUMNS, title=title)
    short = short_tasks(list(dict.fromkeys(str(task) for task in frame["task"])))
    for ax, (key, panel) in zip(axes, groups, strict=True):
        task, protocol, component, ablation = (str(part) for part in key)
        grid = panel.pivot(index="layer", columns="head", values="delta").reindex(layers, columns=range(width))
        ax.set_facecolor("0.85")
        colour_cells(ax, grid, label="Δμ", cmap=SIGNED, vmin=-largest, vmax=largest)
        marked = panel[panel["significant"]]
        rows = [layers.index(layer) + 0.5 for layer in marked["layer"]]
        ax.scatter(marked["head"] + 0.5, rows, s=22, color="black", edgecolor="white", linewidth=0.7)
        shown = protocol + (f", {ablation}" if frame["ablation"].nunique() > 1 else "")
        ax.set(
            title=panel_title(short[task], shown + _marks(panel)),
            xlabel=words.get(component, component),
            ylabel="layer" if len(layers) == depth else f"layer ({len(layers)} of {depth} swept)",
        )
        ax.title.set_fontsize(9)
        ax.tick_params(labelsize=7)
        label_places(ax.xaxis, [str(head) for head in range(width)])
        label_places(ax.yaxis, [str(layer) for layer in layers])
    return axes


def _marks(panel: pd.DataFrame) -> str:
    """What a map's title adds: numbers of items that differ, and a clean model at chance."""
    several = f", n {sizes_of(panel)}" if panel["n"].nunique() > 1 else ""
    return several + ("" if beats_chance(panel).iloc[0] else " (at chance)")


@register_analysis(
    title="Δμ of single heads",
    draw=lambda data, spec: head_effect_maps(
        data, n_layers=spec.n_layers, n_heads=spec.n_heads, q=level_of(spec), title=spec.model
    ),
    alt=lambda data: (
        f"Heatmaps of layers by heads: change of accuracy without each head; {int(data['significant'].sum())} marked"
    ),
    saved=True,
)
def heads(outcomes: Outcomes, task: str | None = None, protocol: str | None = None) -> pd.DataFrame:
    """Δμ without each head. Dot: q ≤ 0.05, or ≤ the run's own q."""
    return head_effect_maps_data(summarise_cells(outcomes, task, protocol), q=level_of(outcomes.spec))
