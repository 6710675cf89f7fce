"""Attribution over the tokens of a prompt: layers (or heads) × tokens."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from lensprune.errors import UserError
from lensprune.output.drawing.style import SIGNED, panels
from lensprune.output.plain_text import visible

__all__ = ["token_map", "token_map_data"]

_LONGEST = 14


def token_map_data(effects: pd.DataFrame, tokens: Sequence[str], *, value: str = "effect") -> pd.DataFrame:
    """What `token_map` draws: site, layer, head, position, token, `value`.

    Raises:
        UserError: effects that are not by position, or another number of tokens than positions.
    """
    frame = effects[effects["position"] >= 0]
    if frame.empty:
        raise UserError("there is nothing to draw: patch with by_position=True")
    if int(frame["position"].max()) >= len(tokens):
        raise UserError(f"{len(tokens)} tokens are given for {int(frame['position'].max()) + 1} positions")
    named = frame.assign(token=[tokens[position] for position in frame["position"]])
    return named[["site", "layer", "head", "position", "token", value]].reset_index(drop=True)


def token_map(effects: pd.DataFrame, tokens: Sequence[str], *, value: str = "effect", title: str = "") -> list[Axes]:
    """Draw the effect of every (layer, token): one panel per site, layers upwards, tokens from left to right.

    The scale is symmetric about 0. Of a site with heads the heads of a layer are added up.

    Args:
        effects: from `activation_patching` or `attribution_patching` with ``by_position=True``.
        tokens: the text of each position; hidden characters are written out.
        value: the column to draw.

    Raises:
        UserError: effects that are not by position, or another number of tokens than positions.
    """
    frame = token_map_data(effects, tokens, value=value)
    sites = list(dict.fromkeys(frame["site"]))
    n_layers = int(frame["layer"].max()) + 1
    size = (min(2.2 + 0.2 * len(tokens), 16.0), min(2.4 + 0.16 * n_layers, 8.0))
    _, axes = panels(len(sites), size=size, columns=1, title=title)
    labels = [visible(token.replace("\n", "\\n"), _LONGEST) for token in tokens]
    for ax, site in zip(axes, sites, strict=True):
        grid = frame[frame["site"] == site].groupby(["layer", "position"])[value].sum().unstack()
        grid = grid.reindex(range(n_layers), columns=range(len(tokens)))
        largest = float(grid.abs().to_numpy().max()) or 1.0
        sns.heatmap(
            grid, ax=ax, cmap=SIGNED, vmin=-largest, vmax=largest, cbar_kws={"label": value, "shrink": 0.8},
            xticklabels=labels, yticklabels=max(1, n_layers // 10),
        )  # fmt: skip
        ax.invert_yaxis()
        ax.set(title=str(site), xlabel="", ylabel="layer")
        # A token may hold $, which matplotlib would read as mathematics.
        for label in ax.get_xticklabels():
            label.set_parse_math(False)
        ax.tick_params(axis="x", labelsize=7, rotation=90)
        ax.tick_params(axis="y", labelsize=7, rotation=0)
    return axes
