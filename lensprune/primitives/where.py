"""Where heads act in worked solutions: each is removed at the tokens of one class at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from lensprune.ablation.components import Head
from lensprune.ablation.positions import ALL
from lensprune.ablation.variants import Ablation, Variant
from lensprune.analysis.multiplicity import benjamini_hochberg
from lensprune.engine.marks import Marks
from lensprune.errors import UserError
from lensprune.models.adapt import as_hooked_model
from lensprune.models.base import AnyModel
from lensprune.primitives.battery import marked_chains, reference_for
from lensprune.primitives.chains import ChainOptions
from lensprune.primitives.classes import CLASSES
from lensprune.primitives.effects import MIN_SOLUTIONS, effect_rows, token_losses
from lensprune.protocols.requests import LoglikelihoodRequest

__all__ = ["WHERE", "WHERE_COLUMNS", "where_effects"]

WHERE = (ALL, "last", *CLASSES)
"""Everywhere; the last token of the question, which predicts the first of the solution; the solution's tokens by
class."""
WHERE_COLUMNS = (
    "variant", "component", "layer", "head", "at", "class", "effect", "ci_low", "ci_high", "p_value", "q_value",
    "n_positions", "n_tokens", "n_solutions",
)  # fmt: skip


def where_effects(
    model: AnyModel,
    chain_options: ChainOptions,
    heads: Sequence[tuple[int, int]],
    *,
    ablation: str = "zero",
    at: Sequence[str] = WHERE,
    seed: int = 0,
) -> pd.DataFrame:
    """What each head's removal at some tokens of a worked solution costs on the tokens that the model predicts.

    A token's class is that of the token which the head reads *at*, not of the one that is predicted there: a head that
    copies the second operand acts at the ``operator`` before it.

    Args:
        chain_options: which chains.
        heads: (layer, head) of each.
        ablation: ``zero`` or ``mean``.
        at: positions, such as the classes, ``step[0]`` or ``step[0].operator``; those that no solution has get no row.

    Returns:
        One row per (head, positions, class of predicted tokens or ``all``): ``effect`` is the mean loss of their
        log-probability, nats per token, positive where the head is needed, with a 95% interval and a sign-flip p over
        solutions; ``q_value``: Benjamini-Hochberg over the rows whose positions are not ``all``; ``n_positions``:
        tokens at which the head was removed, in all solutions.

    Raises:
        UserError: no heads, or positions that can't be read.
    """
    if not heads:
        raise UserError("there is no head to remove at some positions: give at least one")
    hooked = as_hooked_model(model)
    solutions = marked_chains(hooked, chain_options.chains(), chain_options.wording, chain_options.examples())
    ablations = [Ablation(Head(*head), ablation, place) for place in at for head in heads]
    variants = [Variant(a.name, (a,)) for a in ablations]
    marks = Marks(hooked, variants)
    of_solutions = [marks.of(LoglikelihoodRequest(s.context_ids, s.solution_ids, classes=s.classes)) for s in solutions]
    sizes = {
        place: sum(len(marks.chosen(solution_marks, place)) for solution_marks in of_solutions)
        for place in marks.selectors
    }
    sizes[ALL] = sum(len(s.context_ids) + len(s.solution_ids) - 1 for s in solutions)
    variants = [v for v, a in zip(variants, ablations, strict=True) if sizes[a.at]]
    losses = token_losses(hooked, solutions, variants, reference_for(hooked, chain_options, variants))
    usable = losses.usable
    frames = []
    for kind in (ALL, *CLASSES):
        of_kind = np.ones(len(losses.kind), bool) if kind == ALL else losses.kind == kind
        frame = effect_rows(variants, kind, losses, usable & of_kind, of_kind, len(variants) * (1 + len(CLASSES)), seed)
        frame["at"] = [v.ablations[0].at for v in variants]
        if frame["n_solutions"].iloc[0] >= MIN_SOLUTIONS:
            frames.append(frame)
    if not frames:
        raise UserError(
            f"the model predicts tokens of fewer than {MIN_SOLUTIONS} of {len(solutions)} solutions, so no effect is "
            "resolvable: take more chains"
        )
    table = pd.concat(frames, ignore_index=True)
    table["n_positions"] = table["at"].map(sizes)
    placed = table["at"] != ALL
    table["q_value"] = np.nan
    table.loc[placed, "q_value"] = benjamini_hochberg(table.loc[placed, "p_value"].to_numpy(float))
    return table[list(WHERE_COLUMNS)].astype({"layer": "Int64", "head": "Int64"})
