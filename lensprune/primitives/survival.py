"""Which of the named roles survive further controls, and to which of them the others fall."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from lensprune.analysis.multiplicity import benjamini_hochberg
from lensprune.analysis.randomization import sign_flip_p
from lensprune.attribution.sites import PatchTarget
from lensprune.primitives.effects import MIN_SOLUTIONS, TokenLosses
from lensprune.primitives.patches import MIN_PROBES, PatchEffects
from lensprune.primitives.probes import Probe
from lensprune.primitives.verdicts import Thresholds

__all__ = ["SURVIVAL_COLUMNS", "TRANSFERS", "same_answer", "stable_chains", "stable_pairs", "survival_table"]

TRANSFERS = ("other_wording", "other_range")
"""Other chains on which a role is tested again."""
SURVIVAL_COLUMNS = (
    "component", "layer", "head", "role", "test", "class", "shuffled", "placebo", "same_answer", "same_answer_q",
    "stable_chains", "stable_pairs", *TRANSFERS, "fell", "untested",
)  # fmt: skip
_PART = ["component", "layer", "head"]
_NUMBERS = ("operand", "result", "carried", "answer")
_DRAWS = 1000
_STABLE = 0.9


def same_answer(
    losses: TokenLosses, tokens: Int[np.ndarray, " tok"], kind: str, *, tests: int, seed: int = 0
) -> tuple[Float[np.ndarray, " variant"], Float[np.ndarray, " variant"]]:
    """The loss on a class's numbers minus that on the same numbers of other classes in the same solution: a result that
    was computed against its copies, for example. A part that only prefers the answer loses both.

    Returns:
        The mean over solutions, nats, and its one-sided p by sign flips of solutions; NaN if fewer than
        `MIN_SOLUTIONS` have such numbers, all predicted by the clean model.

    Args:
        tokens: the id of each token.
        tests: number of tests, for the resolution of p.
    """
    usable = losses.usable & np.isin(losses.kind, _NUMBERS)
    differences = []
    for unit in np.unique(losses.unit[usable]):
        own = usable & (losses.unit == unit)
        here, elsewhere = own & (losses.kind == kind), own & (losses.kind != kind)
        shared = np.intersect1d(tokens[here], tokens[elsewhere])
        if len(shared):
            of_shared = np.isin(tokens, shared)
            differences.append(losses.loss[here & of_shared].mean(0) - losses.loss[elsewhere & of_shared].mean(0))
    if len(differences) < MIN_SOLUTIONS:
        nothing = np.full(losses.loss.shape[1], np.nan)
        return nothing, nothing.copy()
    table = np.array(differences)
    return table.mean(0), sign_flip_p(table, tests=tests, flips=2000, alternative="greater", seed=seed)


def stable_chains(
    losses: TokenLosses, text: TokenLosses, kind: str, least: float, seed: int = 0
) -> Float[np.ndarray, " variant"]:
    """Share of bootstraps, of solutions and of general texts, in which a removal still costs the class `least` nats,
    more than the solutions' other tokens, and more than general text."""
    usable = losses.usable
    of_class = losses.kind == kind
    everywhere = np.unique(losses.unit[usable & of_class])
    if len(everywhere) < MIN_SOLUTIONS:
        return np.full(losses.loss.shape[1], np.nan)
    own, others = _sums(losses, usable & of_class, everywhere), _sums(losses, usable & ~of_class, everywhere)
    texts = text.units(np.isfinite(text.loss).all(axis=1))
    random = np.random.default_rng(seed)
    chosen = random.multinomial(len(everywhere), np.full(len(everywhere), 1 / len(everywhere)), _DRAWS).astype(float)
    of_texts = random.multinomial(len(texts), np.full(len(texts), 1 / len(texts)), _DRAWS) / len(texts)
    with np.errstate(invalid="ignore"):
        own_means, other_means = own[0] / own[1][:, None], others[0] / others[1][:, None]
    both = np.isfinite(own_means - other_means).all(axis=1)
    effect = (chosen @ own[0]) / (chosen @ own[1])[:, None]
    contrast = chosen[:, both] @ (own_means - other_means)[both]
    specific = chosen @ own_means / len(everywhere) - of_texts @ texts
    return ((effect >= least) & (contrast > 0) & (specific > 0)).mean(0)


def _sums(
    losses: TokenLosses, wanted: Bool[np.ndarray, " tok"], units: Int[np.ndarray, " unit"]
) -> tuple[Float[np.ndarray, "unit variant"], Float[np.ndarray, " unit"]]:
    """Summed loss and number of the wanted tokens of each unit."""
    inside = wanted & np.isin(losses.unit, units)
    sums, counts = np.zeros((len(units), losses.loss.shape[1])), np.zeros(len(units))
    places = np.searchsorted(units, losses.unit[inside])
    np.add.at(sums, places, losses.loss[inside])
    np.add.at(counts, places, 1)
    return sums, counts


def stable_pairs(
    probes: Sequence[Probe], patched: PatchEffects, test: str, least: float, seed: int = 0
) -> Float[np.ndarray, " place"]:
    """Share of bootstraps of chains in which the patch still moves `least` of the whole change."""
    used = np.array([probe.test == test for probe in probes], bool) & patched.counts
    units = np.array([probe.unit for probe in probes])[used]
    names, places = np.unique(units, return_inverse=True)
    if len(names) < MIN_PROBES:
        return np.full(patched.effect.shape[1], np.nan)
    effects, wholes = np.zeros((len(names), patched.effect.shape[1])), np.zeros(len(names))
    np.add.at(effects, places, patched.effect[used])
    np.add.at(wholes, places, patched.whole[used])
    chosen = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), _DRAWS)
    scale = chosen @ wholes
    return ((chosen @ effects >= least * scale[:, None]) & (scale > 0)[:, None]).mean(0)


def survival_table(
    named: pd.DataFrame,
    measured: Mapping[str, pd.DataFrame],
    transferred: Mapping[str, pd.DataFrame],
    columns: Mapping[str, Sequence[Any]],
    thresholds: Thresholds,
) -> pd.DataFrame:
    """One row per named (part, role, test).

    `shuffled`, `placebo`: whether the same is named with shuffled classes, and by the placebo. `same_answer`,
    `same_answer_q`: see `same_answer`; Benjamini-Hochberg over these rows. `stable_chains`, `stable_pairs`: shares of
    bootstraps, of which 0.9 are asked. `other_wording`, `other_range`: whether removal and patching pass on such chains
    too, with q over the named parts. NaN: not resolvable. `fell`: the controls that the role does not survive;
    `untested`: those that are not resolvable.

    Args:
        named: rows of `role_evidence`.
        measured: evidence with ``shuffled`` classes and by ``placebo``.
        transferred: evidence by the names of `TRANSFERS`; those that were not measured are left out.
        columns: ``same_answer``, ``same_answer_p``, ``stable_chains`` and ``stable_pairs`` of each row.
    """
    table = named[[*_PART, "role", "test", "class"]].reset_index(drop=True)
    for name, evidence in measured.items():
        table[name] = [bool(row is not None and row["named"]) for row in _matching(table, evidence)]
    for name in ("same_answer", "stable_chains", "stable_pairs"):
        table[name] = np.asarray(columns[name], float)
    table["same_answer_q"] = benjamini_hochberg(np.asarray(columns["same_answer_p"], float))
    for name in TRANSFERS:
        known = _matching(table, transferred[name]) if name in transferred else [None] * len(table)
        table[name] = pd.array(
            [None if row is None or pd.isna(row["effect"] + row["share"]) else bool(row["named"]) for row in known],
            dtype="boolean",
        )
    passes = {
        "shuffled classes": ~table["shuffled"],
        "placebo": ~table["placebo"],
        "same answer": ((table["same_answer"] > 0) & (table["same_answer_q"] <= thresholds.q))
        .astype("boolean")
        .mask(table["same_answer"].isna()),
        "bootstraps of chains": (table["stable_chains"] >= _STABLE)
        .astype("boolean")
        .mask(table["stable_chains"].isna()),
        "bootstraps of pairs": (table["stable_pairs"] >= _STABLE).astype("boolean").mask(table["stable_pairs"].isna()),
        "other wording": table["other_wording"],
        "other range": table["other_range"],
    }
    for column, wanted in (("fell", False), ("untested", None)):
        table[column] = [
            ", ".join(name for name, held in passes.items() if (None if pd.isna(held[i]) else bool(held[i])) is wanted)
            for i in range(len(table))
        ]
    return table[list(SURVIVAL_COLUMNS)]


def _matching(table: pd.DataFrame, evidence: pd.DataFrame) -> list[dict[Any, Any] | None]:
    """The row of the evidence on each row's part, role and test."""

    def key(row: Mapping[Any, Any]) -> tuple[Any, ...]:
        return (row["component"], row["layer"], -1 if pd.isna(row["head"]) else row["head"], row["role"], row["test"])

    rows = {key(row): row for row in evidence.to_dict("records")}
    return [rows.get(key(row)) for row in table.to_dict("records")]


def place_index(places: Sequence[PatchTarget], row: Mapping[Any, Any]) -> int:
    """Where a row's part is among the places."""
    head = None if pd.isna(row["head"]) else int(row["head"])
    return next(i for i, p in enumerate(places) if (p.site, p.layer, p.head) == (row["component"], row["layer"], head))
