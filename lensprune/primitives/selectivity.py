"""Selectivity of a role's heads: removing all of them against removing random heads, by token class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from lensprune.ablation.components import Head
from lensprune.ablation.variants import Ablation, Variant
from lensprune.errors import UserError, unknown_name
from lensprune.models.adapt import as_hooked_model
from lensprune.models.base import AnyModel, ModelFacts
from lensprune.primitives.battery import marked_chains, reference_for
from lensprune.primitives.classes import CLASSES
from lensprune.primitives.effects import MIN_SOLUTIONS, TokenLosses, token_losses
from lensprune.primitives.result import Primitives
from lensprune.primitives.verdicts import COHERENCE, ROLES

__all__ = ["selectivity"]

_NULLS = ("random", "spared")
_COLUMNS = [
    *("role", "heads", "class", "own", "effect"),
    *("random_mean", "random_low", "random_high", "p_value"),
    *("spared_mean", "spared_low", "spared_high", "spared_p"),
]
_Heads = list[tuple[int, int]]


def selectivity(model: AnyModel, result: Primitives, *, draws: int = 20, ablation: str | None = None) -> pd.DataFrame:
    """Remove all heads of each role together, on the same number of new chains, not used to assign roles.

    Args:
        draws: number of random sets per null.
        ablation: ``zero``; ``mean``, over other chains, per position; ``resample``, from one other chain; ``None``:
            `result.ablation`. Chains of equal wording and length have their words at the same positions, so ``mean``
            and ``resample`` keep what a head does in every chain and remove what is specific to this one, whereas
            ``zero`` also removes a constant that later parts may rely on.

    Returns:
        One row per (role with heads, class that the clean model predicts): ``heads``, ``own`` (the class belongs to the
        role), ``effect`` (mean loss of the tokens that the clean model predicts, nats), mean and middle 95% of the same
        for `draws` random sets of as many other heads, and ``p_value``: (1 + random sets that cost as much) / (1 +
        draws), one-sided. Random sets may contain heads of other roles. ``spared_mean``, ``spared_low``,
        ``spared_high``, ``spared_p``: the same against sets without heads that keep coherence; NaN if too few heads are
        left.

    Raises:
        UserError: too few draws, too few other heads to draw from, or an unsupported ablation.
    """
    hooked = as_hooked_model(model)
    kind = ablation or result.ablation
    if kind not in ("zero", "mean", "resample"):
        raise unknown_name("ablation for selectivity", kind, ("zero", "mean", "resample"))
    if draws < 1:
        raise UserError(f"draws {draws} is not a number of random sets: expected 1 or more")
    named = {role: heads for role in ROLES if (heads := result.heads(role))}
    if not named:
        return pd.DataFrame(columns=_COLUMNS)
    removals = _removals(hooked.facts, result, named, draws)
    variants = [
        Variant(f"{role} {null} {i}", tuple(Ablation(Head(*place), kind) for place in heads))
        for (role, null), sets in removals.items()
        for i, heads in enumerate(sets)
    ]
    options = result.chain_options
    solutions = marked_chains(hooked, options.chains(skip=options.limit), options.wording, options.examples())
    losses = token_losses(hooked, solutions, variants, reference_for(hooked, options, variants, "per_position"))
    return pd.DataFrame(_rows(losses, named, {key: len(sets) for key, sets in removals.items()}), columns=_COLUMNS)


def _removals(
    facts: ModelFacts, result: Primitives, named: Mapping[str, _Heads], draws: int
) -> dict[tuple[str, str], list[_Heads]]:
    """Sets of heads to remove, by role and null: the role's heads, ``own``, and random sets of each null."""
    everywhere = [(layer, head) for layer in range(facts.n_layers) for head in range(facts.n_heads)]
    coherence = set(result.heads(COHERENCE))
    generator = np.random.default_rng(result.chain_options.seed)
    sets: dict[tuple[str, str], list[_Heads]] = {}
    for role, heads in named.items():
        others = [place for place in everywhere if place not in heads]
        if len(others) < len(heads):
            raise UserError(
                f"{role}: {len(heads)} heads have this role, and only {len(others)} others are left to draw from"
            )
        sets[role, "own"] = [heads]
        for null, pool in zip(_NULLS, (others, [place for place in others if place not in coherence]), strict=True):
            sets[role, null] = _drawn(pool, len(heads), draws, generator)
    return sets


def _rows(
    losses: TokenLosses, named: Mapping[str, _Heads], sizes: Mapping[tuple[str, str], int]
) -> Iterator[tuple[Any, ...]]:
    """One row for each role and class; `losses` has `sizes` variants for each role and null, in their order."""
    ends = dict(zip(sizes, accumulate(sizes.values()), strict=True))
    for role, heads in named.items():
        label = " ".join(Head(*place).label for place in heads)
        for token_class in CLASSES:
            wanted = losses.predicted & (losses.kind == token_class)
            if len(np.unique(losses.unit[wanted])) < MIN_SOLUTIONS:
                continue
            means = losses.loss[wanted].mean(axis=0)
            of_null = {
                null: means[ends[role, null] - sizes[role, null] : ends[role, null]] for null in ("own", *_NULLS)
            }
            effect = float(of_null["own"][0])
            against = [number for null in _NULLS for number in _against(effect, of_null[null])]
            yield role, label, token_class, token_class in {kind for _, kind in ROLES[role]}, effect, *against


def _drawn(pool: _Heads, size: int, draws: int, generator: np.random.Generator) -> list[_Heads]:
    """Random sets of heads; none if the pool is smaller than a set."""
    if len(pool) < size:
        return []
    return [[pool[i] for i in generator.permutation(len(pool))[:size]] for _ in range(draws)]


def _against(effect: float, random: Float[np.ndarray, " draw"]) -> tuple[float, float, float, float]:
    """Mean and middle 95% of random sets' effects, and the one-sided p of `effect` among them; NaN without random
    sets."""
    if not len(random):
        return (float("nan"),) * 4
    low, high = np.quantile(random, [0.025, 0.975])
    p = (1 + int((random >= effect - 1e-9).sum())) / (1 + len(random))
    return float(random.mean()), float(low), float(high), p
