"""Maps of heads in worked solutions: the loss on each token class without a head."""

from __future__ import annotations

from matplotlib.axes import Axes

from lensprune.output.drawing.heatmap import head_heatmaps
from lensprune.primitives import Primitives

__all__ = ["primitives_heatmaps"]


def primitives_heatmaps(result: Primitives) -> list[Axes]:
    """A map of layers × heads and MLPs for each resolvable class, and for general text: effect of removal, nats."""
    parts = result.effects[result.effects["component"].isin(["head", "mlp"]) & result.effects["effect"].notna()]
    return head_heatmaps(
        parts.assign(score=parts["class"]),
        value="effect",
        title=f"{result.model}: nats lost without a part, by class",
        label="nats",
    )
