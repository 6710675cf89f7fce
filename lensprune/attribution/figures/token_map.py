"""Attribution over the tokens of a prompt: layers (or heads) × tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd
from matplotlib.axes import Axes

from lensprune.errors import UserError
from lensprune.output.drawing.heatmap import colour_cells, label_places
from lensprune.output.drawing.style import SIGNED, panels
from lensprune.output.plain_text import visible

__all__ = ["token_map", "token_map_data"]

_LONGEST = 14
_ACROSS = 36
"""Most tokens in a row of panels, so that labels are legible in print."""
_CLEAR = 0.01


def token_map_data(effects: pd.DataFrame, tokens: Sequence[str], *, value: str = "effect") -> pd.DataFrame:
    """What `token_map` draws: site, layer, head, position, token, `value`.

    Raises:
        UserError: effects that are not by position, or the number of tokens differs from the number of positions.
    """
    frame = effects[effects["position"] >= 0]
    if frame.empty:
        raise UserError("there is nothing to draw: patch with by_position=True")
    if int(frame["position"].max()) >= len(tokens):
        raise UserError(f"there are {len(tokens)} tokens for {int(frame['position'].max()) + 1} positions")
    named = frame.assign(token=[tokens[position] for position in frame["position"]])
    return named[["site", "layer", "head", "position", "token", value]].reset_index(drop=True)


def token_map(effects: pd.DataFrame, tokens: Sequence[str], *, value: str = "effect", title: str = "") -> list[Axes]:
    """Draw the effect of every (layer, token): layers upwards, tokens from left to right, a long prompt in several rows
    of panels.

    Tokens before the first one whose effect is at least 1% of the largest are left out, except for two: nothing can
    change where the two prompts are equal. Layers without a row are left out too. Each site's scale is symmetric about
    0. For a site with heads, the heads of a layer are summed.

    Args:
        effects: from `activation_patching` or `attribution_patching` with ``by_position=True``.
        tokens: the text of each position; hidden characters are written out.
        value: the column to draw.

    Returns:
        One Axes per site and row of tokens, all of one figure.

    Raises:
        UserError: effects that are not by position, or the number of tokens differs from the number of positions.
    """
    frame = token_map_data(effects, tokens, value=value)
    sites, layers = list(dict.fromkeys(frame["site"])), sorted(set(frame["layer"].astype(int)))
    grids = {site: frame[frame["site"] == site].groupby(["layer", "position"])[value].sum().unstack() for site in sites}
    begin = _first_shown(grids.values(), len(tokens))
    rows = [range(start, min(start + _ACROSS, len(tokens))) for start in range(begin, len(tokens), _ACROSS)]
    across = max(len(row) for row in rows)
    size = (2.2 + 0.28 * across, min(1.5 + 0.17 * len(layers), 4.8))
    _, axes = panels(len(sites) * len(rows), size=size, columns=1, title=title)
    labels = [visible(token.replace("\n", "\\n"), _LONGEST) for token in tokens]
    left = f"; {begin} tokens before them without effect" if begin else ""
    for ax, (site, row) in zip(axes, ((site, row) for site in sites for row in rows), strict=True):
        grid = grids[site]
        largest = float(grid.abs().to_numpy().max()) or 1.0
        # All rows have the same width, so that tokens line up.
        shown = grid.reindex(layers, columns=range(row.start, row.start + across))
        colour_cells(ax, shown, label=value, cmap=SIGNED, vmin=-largest, vmax=largest)
        ax.set_xticks([place + 0.5 for place in range(len(row))], [labels[place] for place in row])
        ax.set(xlabel="", ylabel="layer")
        ax.set_title(f"{site}, tokens {row.start} to {row.stop - 1}{left if row is rows[0] else ''}", fontsize=9)
        # A token may contain $, which matplotlib would read as math.
        for label in ax.get_xticklabels():
            label.set_parse_math(False)
        label_places(ax.yaxis, [str(layer) for layer in layers])
        ax.tick_params(labelsize=8)
        ax.tick_params(axis="x", rotation=90, length=0)
    return axes


def _first_shown(grids: Iterable[pd.DataFrame], n: int) -> int:
    """Two positions before the first with an effect; 0 if no position has one."""
    sizes = pd.concat([grid.abs().max() / (grid.abs().to_numpy().max() or 1.0) for grid in grids])
    clear = sizes.index[sizes > _CLEAR]
    return max(0, min(int(clear.min()) - 2, n - 1)) if len(clear) else 0
