"""Do the heads of a role break their own class and leave the others? All of them removed, against random heads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from lensprune.ablation.components import Head
from lensprune.ablation.variants import Ablation, AblationKind, Variant
from lensprune.errors import UserError
from lensprune.heads.reasoning.battery import marked_chains, reference_for
from lensprune.heads.reasoning.classes import CLASSES
from lensprune.heads.reasoning.effects import LEAST_SOLUTIONS, token_losses
from lensprune.heads.reasoning.result import Primitives
from lensprune.heads.reasoning.verdicts import ROLES
from lensprune.models.adapt import as_hooked_model

__all__ = ["selectivity"]

_COLUMNS = ["role", "heads", "class", "own", "effect", "random_mean", "random_low", "random_high", "p_value"]


def selectivity(model: Any, found: Primitives, *, draws: int = 20) -> pd.DataFrame:
    """Remove all heads of each role together, on as many further chains that took no part in naming them.

    Returns:
        One row a (role with heads, class that the clean model predicts): ``heads``, ``own`` (the class belongs to the
        role), ``effect`` (mean loss of the tokens that the clean model predicts, nats), mean and middle 95% of the same
        for `draws` random sets of as many other heads, and ``p_value``: (1 + random sets that cost as much) / (1 +
        draws), one-sided. Random sets may hold heads of other roles.

    Raises:
        UserError: too few draws, or too few other heads to draw from.
    """
    hooked = as_hooked_model(model)
    if draws < 1:
        raise UserError(f"draws {draws} is not a number of random sets: expected 1 or more")
    facts = hooked.facts
    everywhere = [(layer, head) for layer in range(facts.n_layers) for head in range(facts.n_heads)]
    generator = np.random.default_rng(found.asked.seed)
    variants: list[Variant] = []
    named = {role: found.heads(role) for role in ROLES if found.heads(role)}
    for role, heads in named.items():
        others = [place for place in everywhere if place not in heads]
        if len(others) < len(heads):
            raise UserError(f"{role}: {len(heads)} heads are named and only {len(others)} others are left to draw from")
        sets = [heads]
        for _ in range(draws):
            sets.append([others[i] for i in generator.permutation(len(others))[: len(heads)]])
        variants += [_without(f"{role} {i}", own, found.ablation) for i, own in enumerate(sets)]
    if not variants:
        return pd.DataFrame(columns=_COLUMNS)
    asked = found.asked
    chains = asked.chains(skip=asked.limit)
    solutions = marked_chains(hooked, chains, asked.wording, asked.examples())
    losses = token_losses(hooked, solutions, variants, reference_for(hooked, asked, variants))
    rows = []
    for place, (role, heads) in enumerate(named.items()):
        columns = slice(place * (draws + 1), (place + 1) * (draws + 1))
        own_classes = {kind for _, kind in ROLES[role]}
        for kind in CLASSES:
            wanted = losses.predicted & (losses.kind == kind)
            if len(np.unique(losses.unit[wanted])) < LEAST_SOLUTIONS:
                continue
            effect, *random = losses.loss[wanted, columns].mean(axis=0)
            low, high = np.quantile(random, [0.025, 0.975])
            p = (1 + int((np.array(random) >= effect - 1e-9).sum())) / (1 + draws)
            label = " ".join(f"L{layer}.H{head}" for layer, head in heads)
            rows.append((role, label, kind, kind in own_classes, effect, np.mean(random), low, high, p))
    return pd.DataFrame(rows, columns=_COLUMNS)


def _without(name: str, heads: list[tuple[int, int]], kind: AblationKind) -> Variant:
    return Variant(name, tuple(Ablation(Head(*place), kind) for place in heads))
