"""The cost of removing a part on each token class of worked solutions, and on general text, in nats."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import scipy
from jaxtyping import Bool, Float, Int

from lensprune.ablation.reference import ReferenceActivations
from lensprune.ablation.variants import CLEAN, Variant
from lensprune.analysis.intervals import mean_intervals
from lensprune.analysis.multiplicity import benjamini_hochberg
from lensprune.analysis.randomization import TOLERANCE, sign_flip_p
from lensprune.engine.base import ProgressCallback
from lensprune.engine.traces import TokenTrace, trace_tokens
from lensprune.models.base import HookedModel
from lensprune.primitives.classes import CLASSES, MarkedSolution
from lensprune.protocols.requests import LoglikelihoodRequest

__all__ = ["EFFECT_COLUMNS", "MIN_SOLUTIONS", "TokenLosses", "class_effects", "effect_rows", "token_losses"]

EFFECT_COLUMNS = (
    "variant",
    "component",
    "layer",
    "head",
    "class",
    "effect",
    "ci_low",
    "ci_high",
    "p_value",
    "q_value",
    "contrast",
    "contrast_p",
    "contrast_q",
    "text_effect",
    "specificity",
    "specificity_p",
    "specificity_q",
    "rank_p",
    "predicted",
    "n_tokens",
    "n_solutions",
)
MIN_SOLUTIONS = 6
"""A class that the clean model predicts in fewer solutions is not resolvable: a sign-flip p can't reach 0.05."""
_TEXT = "text"


@dataclass(frozen=True)
class TokenLosses:
    """log p(clean) − log p(variant) of given tokens, nats; positive: the part was needed.

    `unit`: the solution or text that each token belongs to; `kind`: its class; `predicted`: whether the clean model's
    most likely token is the given one.
    """

    loss: Float[np.ndarray, "tok variant"]
    unit: Int[np.ndarray, " tok"]
    kind: np.ndarray
    predicted: Bool[np.ndarray, " tok"]

    @property
    def usable(self) -> Bool[np.ndarray, " tok"]:
        """Tokens of some class that the clean model predicts, with a finite loss under every variant."""
        return self.predicted & (self.kind != "") & np.isfinite(self.loss).all(axis=1)

    def among(self, variants: Sequence[int]) -> TokenLosses:
        """The losses under some of the variants, by index."""
        return replace(self, loss=self.loss[:, list(variants)])

    def units(self, wanted: Bool[np.ndarray, " tok"]) -> Float[np.ndarray, "unit variant"]:
        """Mean loss of the wanted tokens of each unit that has any."""
        codes = np.unique(self.unit[wanted], return_inverse=True)[1]
        sums = np.zeros((codes.max(initial=-1) + 1, self.loss.shape[1]))
        np.add.at(sums, codes, self.loss[wanted])
        return sums / np.bincount(codes)[:, None]


def token_losses(
    model: HookedModel,
    solutions: Sequence[MarkedSolution],
    variants: Sequence[Variant],
    reference: ReferenceActivations | None = None,
    *,
    progress: ProgressCallback | None = None,
) -> TokenLosses:
    """Score the solutions teacher-forced, under each variant (not including the clean model)."""
    requests = [LoglikelihoodRequest(s.context_ids, s.solution_ids, classes=s.classes) for s in solutions]
    clean, *changed = trace_tokens(model, requests, [CLEAN, *variants], reference=reference, progress=progress)

    def joined(traces: Sequence[TokenTrace]) -> np.ndarray:
        return np.concatenate([trace.logprob for trace in traces])

    losses = joined(clean)[:, None] - np.stack([joined(traces) for traces in changed], axis=1)
    return TokenLosses(
        loss=losses,
        unit=np.repeat(np.arange(len(solutions)), [len(solution.solution_ids) for solution in solutions]),
        kind=np.array([kind for solution in solutions for kind in solution.kinds]),
        predicted=np.concatenate([trace.agrees for trace in clean]),
    )


def class_effects(
    losses: TokenLosses, text: TokenLosses, variants: Sequence[Variant], *, seed: int = 0
) -> pd.DataFrame:
    """The effect of each variant on each class, over the tokens that the clean model predicts (its most likely token).

    * ``effect``: mean loss over the class's tokens, nats, with a 95% interval over solutions (NaN if all are equal);
      ``p_value``: sign-flip test over solutions, two-sided (`sign_flip_p`).
    * ``contrast``: mean over solutions of the mean loss over the class's tokens minus that over the solution's other
      predicted tokens; ``contrast_p``: one-sided sign-flip test over solutions, since tokens of one solution are not
      independent.
    * ``text_effect``: mean loss over all tokens of general text; ``specificity``: (mean over solutions of the class
      effect − mean over texts of the text effect) / their pooled standard deviation; ``specificity_p``: one-sided Welch
      test of that difference (if neither group varies, the permutation test's p).
    * ``rank_p``: share of this component's parts, including this one, with a specificity at least as large (the
      p-value of a randomly drawn part).
    * ``q_value``, ``contrast_q``, ``specificity_q``: Benjamini–Hochberg over parts × classes of one component. The
      underlying p-values are fine enough for a single effect among all parts × classes to be significant.
    * ``predicted``: share of the class's tokens that the clean model predicts; ``n_tokens``, ``n_solutions``: numbers
      of tokens and solutions behind the effect. Below `MIN_SOLUTIONS`, everything else is NaN.

    The class ``text`` has one row per variant too: its effect on general text.
    """
    usable = losses.usable
    text_usable = np.isfinite(text.loss).all(axis=1)
    text_units = text.units(text_usable)
    tests = len(variants) * (1 + len(CLASSES))
    frames = [effect_rows(variants, _TEXT, text, text_usable, np.ones(len(text.kind), bool), tests, seed)]
    frames[0]["text_effect"] = frames[0]["effect"]
    for kind in CLASSES:
        of_class = losses.kind == kind
        wanted = usable & of_class
        frame = effect_rows(variants, kind, losses, wanted, of_class, tests, seed)
        if frame["n_solutions"].iloc[0] >= MIN_SOLUTIONS:
            frame["text_effect"] = frames[0]["effect"]
            frame["contrast"], frame["contrast_p"] = _contrast(losses, usable, of_class, tests, seed)
            frame["specificity"], frame["specificity_p"] = _specificity(losses.units(wanted), text_units)
        frames.append(frame)
    table = pd.concat(frames, ignore_index=True)
    for name in ("q_value", "contrast_q", "specificity_q", "rank_p"):
        table[name] = np.nan
    for _, own_rows in table.groupby("component"):
        for name, of in (("q_value", "p_value"), ("contrast_q", "contrast_p"), ("specificity_q", "specificity_p")):
            table.loc[own_rows.index, name] = benjamini_hochberg(own_rows[of].to_numpy(float))
    ranked = table.groupby(["component", "class"])["specificity"]
    table["rank_p"] = ranked.rank(method="max", ascending=False) / ranked.transform("count")
    return table[list(EFFECT_COLUMNS)].astype({"layer": "Int64", "head": "Int64"})


def effect_rows(
    variants: Sequence[Variant],
    kind: str,
    losses: TokenLosses,
    wanted: Bool[np.ndarray, " tok"],
    all_of_it: Bool[np.ndarray, " tok"],
    tests: int,
    seed: int,
) -> pd.DataFrame:
    """One row per variant: its effect on the `wanted` tokens, of `all_of_it`, which are called `kind`; the columns that
    compare it with other tokens are NaN.

    Args:
        tests: number of kinds × variants, for the resolution of p.
    """
    n_units = len(np.unique(losses.unit[wanted]))
    frame = pd.DataFrame(
        {name: [getattr(v, name) for v in variants] for name in ("component", "layer", "head")}
        | {"variant": [v.name for v in variants], "class": kind}
    )
    for name in EFFECT_COLUMNS[5:-3]:
        frame[name] = np.nan
    frame["predicted"] = losses.predicted[all_of_it].mean() if all_of_it.any() else np.nan
    frame["n_tokens"], frame["n_solutions"] = int(wanted.sum()), n_units
    if n_units >= MIN_SOLUTIONS:
        interval = mean_intervals(losses.loss[wanted], losses.unit[wanted], bounds=None)
        frame["effect"], frame["ci_low"], frame["ci_high"] = interval.delta, interval.low, interval.high
        frame["p_value"] = sign_flip_p(losses.units(wanted), tests=tests, flips=2000, seed=seed)
    return frame


def _contrast(
    losses: TokenLosses, usable: Bool[np.ndarray, " tok"], of_class: Bool[np.ndarray, " tok"], tests: int, seed: int
) -> tuple[Float[np.ndarray, " variant"], Float[np.ndarray, " variant"]]:
    """Mean over solutions of the effect on the class minus that on the solution's other tokens, and its one-sided p by
    sign flips of whole solutions; NaN if fewer than `MIN_SOLUTIONS` have both."""
    both = np.isin(losses.unit, losses.unit[usable & ~of_class]) & np.isin(losses.unit, losses.unit[usable & of_class])
    if len(np.unique(losses.unit[both])) < MIN_SOLUTIONS:
        nothing = np.full(losses.loss.shape[1], np.nan)
        return nothing, nothing.copy()
    contrasts = losses.units(both & usable & of_class) - losses.units(both & usable & ~of_class)
    p_values = sign_flip_p(contrasts, tests=tests, flips=2000, alternative="greater", seed=seed)
    return contrasts.mean(axis=0), p_values


def _specificity(
    units: Float[np.ndarray, "unit variant"], text: Float[np.ndarray, "text variant"]
) -> tuple[Float[np.ndarray, " variant"], Float[np.ndarray, " variant"]]:
    """Standardised difference of two groups of means, and its one-sided Welch p.

    If neither group varies, Welch's t is undefined and p is that of the permutation test: only one division of the
    units gives a difference as large.
    """
    difference = units.mean(axis=0) - text.mean(axis=0)
    variances = units.var(axis=0, ddof=1), text.var(axis=0, ddof=1)
    pooled_sd = np.sqrt((variances[0] + variances[1]) / 2)
    still = pooled_sd < TOLERANCE
    with np.errstate(all="ignore"), warnings.catch_warnings():
        # Groups that hardly vary are handled below.
        warnings.simplefilter("ignore", RuntimeWarning)
        d = np.where(
            still, np.where(np.abs(difference) < TOLERANCE, 0.0, np.sign(difference) * np.inf), difference / pooled_sd
        )
        p = scipy.stats.ttest_ind(units, text, equal_var=False, alternative="greater").pvalue
    alone = 1 / math.comb(len(units) + len(text), len(text))
    return d, np.where(still, np.where(difference > TOLERANCE, alone, 1.0), p)
