"""The figures of an exchange of weights by kind: what `DeltaRun.plot` draws and what its report holds."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pandas as pd

from lensprune.errors import UserError, unknown_name
from lensprune.replacement.figures import effect_against_weights, effect_by_depth
from lensprune.replacement.result import DeltaRun
from lensprune.results.figures.kinds import RunFigure, unknown_kind

__all__ = ["DELTA_KINDS", "delta_figure_of", "delta_figures"]

_DRAWN = [
    "task", "protocol", "direction", "part", "component", "layer", "head", "n", "gain", "gain_is_clear", "effect",
    "ci_low", "ci_high",
]  # fmt: skip


def _depth(result: DeltaRun, shares: pd.DataFrame) -> RunFigure:
    return RunFigure(
        "swaps_by_depth",
        "Line chart: what each exchanged part brings to accuracy, one line a direction",
        "What each exchanged part brings: put into the base, and missing from the distilled model. Band: paired 95% "
        "interval; dashes: the whole gain, distilled − base.",
        partial(effect_by_depth, shares, n_layers=result.run.spec.n_layers, title=result.title),
        lambda: shares[_DRAWN],
    )


def _weights(result: DeltaRun, shares: pd.DataFrame) -> RunFigure:
    return RunFigure(
        "swaps_by_weight_change",
        "Scatter plot: what each exchanged part brings against how much its weights changed",
        "What each exchanged part brings against ‖ΔW‖, how much its weights changed. Bars: paired 95% intervals.",
        partial(effect_against_weights, shares, title=result.title),
        lambda: shares[[*_DRAWN, "weight_change", "weight_change_relative"]],
    )


DELTA_KINDS: dict[str, Callable[[DeltaRun, pd.DataFrame], RunFigure]] = {"depth": _depth, "weights": _weights}
"""What `DeltaRun.plot` takes as `kind`."""


def delta_figure_of(
    result: DeltaRun, kind: str = "depth", task: str | None = None, protocol: str | None = None
) -> RunFigure:
    """The figure of one kind.

    Raises:
        UserError: an unknown kind, a name that is not part of the run, or nothing to draw.
    """
    if kind not in DELTA_KINDS:
        raise unknown_kind(kind, DELTA_KINDS)
    shares = result.shares()
    for column, chosen in (("task", task), ("protocol", protocol)):
        if chosen is not None:
            known = {pair[column == "protocol"] for pair in result.run.cells}
            if chosen not in known:
                raise unknown_name(f"{column} of this run", chosen, known)
            shares = shares[shares[column] == chosen]
    if shares.empty:
        raise UserError("there is nothing to draw: no swap was measured")
    return DELTA_KINDS[kind](result, shares.reset_index(drop=True))


def delta_figures(result: DeltaRun) -> list[RunFigure]:
    """Every kind, in the order of `DELTA_KINDS`."""
    return [delta_figure_of(result, kind) for kind in DELTA_KINDS]
