"""Maps of heads in worked solutions: the loss on each token class without a head."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from lensprune.ablation.positions import ALL
from lensprune.output.drawing.heatmap import head_heatmaps
from lensprune.primitives import Primitives

__all__ = ["primitives_heatmaps", "where_heatmaps"]


def primitives_heatmaps(result: Primitives) -> list[Axes]:
    """A map of layers × heads and MLPs for each resolvable class, and for general text: effect of removal, nats."""
    parts = result.effects[result.effects["component"].isin(["head", "mlp"]) & result.effects["effect"].notna()]
    return head_heatmaps(
        parts.assign(score=parts["class"]),
        value="effect",
        title=f"{result.model}: nats lost without a part, by class",
        label="nats",
    )


def where_heatmaps(table: pd.DataFrame, title: str = "") -> list[Axes]:
    """A map of layers × heads for each class of tokens at which a head is removed: nats lost per predicted token."""
    return head_heatmaps(table[table["class"] == ALL], by="at", value="effect", title=title, label="nats per token")
