"""The figures of a weight replacement by kind, as drawn by `ReplacementRun.plot` and the report."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pandas as pd

from lensprune.errors import UserError
from lensprune.output.drawing.figure import Figure, unknown_kind
from lensprune.replacement.figures import effect_against_weights, effect_by_depth
from lensprune.replacement.outcomes import ReplacementOutcomes
from lensprune.replacement.shares import gain_shares

__all__ = ["REPLACEMENT_KINDS", "replacement_figure_of", "replacement_figures"]

_DRAWN = [
    "task", "protocol", "direction", "part", "component", "layer", "head", "n", "gain", "gain_is_clear", "effect",
    "ci_low", "ci_high",
]  # fmt: skip


def _depth(outcomes: ReplacementOutcomes, shares: pd.DataFrame) -> Figure:
    return Figure(
        "replacements_by_depth",
        "Line chart: the effect of each replaced part on accuracy, one line per direction",
        "The effect of each part on accuracy: added to the base, and missing from the distilled model. Band: paired "
        "95% interval; dashes: the whole gain, distilled − base.",
        partial(effect_by_depth, shares, n_layers=outcomes.spec.n_layers, title=outcomes.title),
        lambda: shares[_DRAWN],
    )


def _weights(outcomes: ReplacementOutcomes, shares: pd.DataFrame) -> Figure:
    return Figure(
        "replacements_by_weight_change",
        "Scatter plot: the effect of each replaced part against how much its weights changed",
        "The effect of each replaced part against ‖ΔW‖, how much its weights changed. Bars: paired 95% intervals.",
        partial(effect_against_weights, shares, title=outcomes.title),
        lambda: shares[[*_DRAWN, "weight_change", "weight_change_relative"]],
    )


REPLACEMENT_KINDS: dict[str, Callable[[ReplacementOutcomes, pd.DataFrame], Figure]] = {
    "depth": _depth,
    "weights": _weights,
}
"""Values of `kind` for `ReplacementRun.plot`."""


def replacement_figure_of(
    outcomes: ReplacementOutcomes, kind: str = "depth", task: str | None = None, protocol: str | None = None
) -> Figure:
    """The figure of one kind.

    Raises:
        UserError: an unknown kind, a name that is not part of the run, or nothing to draw.
    """
    if kind not in REPLACEMENT_KINDS:
        raise unknown_kind(kind, REPLACEMENT_KINDS)
    shares = gain_shares(outcomes)
    conditions = set(outcomes.select(task, protocol))
    shares = shares[[condition in conditions for condition in zip(shares["task"], shares["protocol"], strict=True)]]
    if shares.empty:
        raise UserError("there is nothing to draw: no replacement was measured")
    return REPLACEMENT_KINDS[kind](outcomes, shares.reset_index(drop=True))


def replacement_figures(outcomes: ReplacementOutcomes) -> list[Figure]:
    """Every kind, in the order of `REPLACEMENT_KINDS`."""
    return [replacement_figure_of(outcomes, kind) for kind in REPLACEMENT_KINDS]
