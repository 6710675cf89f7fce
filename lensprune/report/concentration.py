"""Lorenz curves: how much of the total effect the strongest parts hold."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes

from lensprune.analysis.concentration import lorenz, null_effects
from lensprune.analysis.head_effects import ItemEffects
from lensprune.errors import UserError

__all__ = ["lorenz_curves"]

_DRAWS = 500


def lorenz_curves(effects: Sequence[ItemEffects], *, title: str = "", seed: int = 0) -> Axes:
    """Draw the share of the total |effect| held by the strongest parts, one line a (task, protocol).

    The band of a line's colour is the 95% range of its noise null (`null_effects`); the diagonal is where all parts
    count the same. A task at chance is dashed.

    Raises:
        UserError: nothing to draw: every effect is 0.
    """
    drawn = [own for own in effects if np.any(own.effects != 0)]
    if not drawn:
        raise UserError("there is nothing to draw: no removed part changed anything")
    with sns.axes_style("ticks", rc={"axes.spines.top": False, "axes.spines.right": False}):
        _, ax = plt.subplots(figsize=(5.2, 4.4), layout="constrained")
    for own, colour in zip(drawn, sns.color_palette("colorblind", len(drawn)), strict=True):
        share = np.linspace(0, 1, len(own.variants) + 1)
        null = lorenz(null_effects(own.differences, _DRAWS, seed))
        low, high = np.nanquantile(null, [0.025, 0.975], axis=0)
        ax.fill_between(share, low, high, color=colour, alpha=0.15, linewidth=0)
        label = f"{own.task}, {own.protocol}" + (" (at chance)" if own.at_chance else "")
        ax.plot(share, lorenz(own.effects), color=colour, linestyle="--" if own.at_chance else "-", label=label)
    ax.plot([0, 1], [0, 1], color="0.6", linewidth=0.9, linestyle=":", label="all equal")
    ax.set(
        xlabel="share of removed parts, strongest first",
        ylabel=f"share of total |change in {drawn[0].measure}|",
        xlim=(0, 1),
        ylim=(0, 1.01),
        title=title,
    )
    ax.legend(fontsize=8, frameon=False, loc="lower right")
    return ax
