"""Lorenz curves: how much of the total effect the strongest parts hold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from lensprune.analysis.concentration import lorenz, null_effects
from lensprune.analysis.head_effects import ItemEffects
from lensprune.errors import UserError
from lensprune.output.drawing.style import GREY, colours, panels
from lensprune.runs.chance import beats_chance

__all__ = ["lorenz_curves", "lorenz_data"]

_DRAWS = 500
_FEW = 2
_MARKERS = "os^Dv<>P*X"


def lorenz_data(effects: Sequence[ItemEffects], *, seed: int = 0) -> pd.DataFrame:
    """What `lorenz_curves` draws: task, protocol, measure, at_chance, share_of_parts, share_of_effect, null_low,
    null_high (95% range of the noise null).

    Raises:
        UserError: nothing to draw: every effect is 0.
    """
    frames = []
    for cell_effects in effects:
        if not np.any(cell_effects.effects != 0):
            continue
        low, high = np.nanquantile(lorenz(null_effects(cell_effects.differences, _DRAWS, seed)), [0.025, 0.975], axis=0)
        curve = {
            "share_of_parts": np.linspace(0, 1, len(cell_effects.variants) + 1),
            "share_of_effect": lorenz(cell_effects.effects),
        }
        place = {
            "task": cell_effects.task,
            "protocol": cell_effects.protocol,
            "measure": cell_effects.measure,
            "at_chance": cell_effects.at_chance,
        }
        frames.append(pd.DataFrame({**place, **curve, "null_low": low, "null_high": high}))
    if not frames:
        raise UserError("there is nothing to draw: no removed part changed anything")
    return pd.concat(frames, ignore_index=True)


def lorenz_curves(effects: Sequence[ItemEffects], *, title: str = "", seed: int = 0) -> Axes:
    """Draw the share of the total |effect| held by the strongest parts, one line a (task, protocol).

    The band of a line's colour is the 95% range of its noise null (`null_effects`); the diagonal is where all parts
    count the same. A task at chance is grey and dashed.

    Raises:
        UserError: nothing to draw: every effect is 0.
    """
    data = lorenz_data(effects, seed=seed)
    curves = list(data.groupby(["task", "protocol"], sort=False))
    # A legend beside the square of the curves takes room of its own, about 0.08 inches a letter.
    longest = max(len(f"{task}, {protocol} (at chance)") for (task, protocol), _ in curves)
    _, (ax,) = panels(1, size=(5.2 if len(curves) <= _FEW else 5.2 + 0.08 * longest, 4.4), title=title)
    ax.set_box_aspect(1)
    for i, ((task, protocol), curve) in enumerate(curves):
        unclear = not beats_chance(curve).iloc[0]
        colour = GREY if unclear else colours(len(curves))[i]
        share = curve["share_of_parts"]
        ax.fill_between(share, curve["null_low"], curve["null_high"], color=colour, alpha=0.15, linewidth=0)
        # Markers in places of their own tell lines apart where colours do not.
        ax.plot(
            share,
            curve["share_of_effect"],
            color=colour,
            linestyle="--" if unclear else "-",
            marker=_MARKERS[i % len(_MARKERS)],
            markersize=4,
            markevery=(i, max(1, len(curve) // 8)),
            label=f"{task}, {protocol}" + (" (at chance)" if unclear else ""),
        )
    ax.plot([0, 1], [0, 1], color="0.6", linewidth=0.9, linestyle=":", label="all equal")
    ax.set(
        xlabel="share of removed parts, strongest first",
        ylabel=f"share of total |change in {data['measure'].iloc[0]}|",
        xlim=(0, 1),
        ylim=(0, 1.01),
    )
    if len(curves) <= _FEW:
        ax.legend(fontsize=8, frameon=False, loc="lower right")
    else:
        ax.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return ax
