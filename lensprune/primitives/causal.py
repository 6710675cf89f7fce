"""Causal tests: patch a part's activation from one run into another to see whether it carries what differs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from lensprune.analysis.intervals import mean_intervals
from lensprune.analysis.multiplicity import benjamini_hochberg
from lensprune.analysis.randomization import sign_flip_p
from lensprune.attribution.sites import PatchTarget
from lensprune.models.base import HookedModel
from lensprune.primitives.patches import MIN_PROBES, PatchEffects, measure_patches
from lensprune.primitives.probes import TESTS, Probe

__all__ = ["CAUSAL_COLUMNS", "MIN_PROBES", "causal_table", "causal_tests"]

CAUSAL_COLUMNS = (
    "component",
    "layer",
    "head",
    "test",
    "effect",
    "share",
    "ci_low",
    "ci_high",
    "p_value",
    "q_value",
    "placebo_share",
    "placebo_p",
    "placebo_q",
    "whole",
    "n",
    "n_asked",
)


def causal_tests(
    model: HookedModel, probes: Sequence[Probe], places: Sequence[PatchTarget], seed: int = 0
) -> pd.DataFrame:
    """Patch each part in every probe, and measure how far the next token moves towards the donor's.

    A probe counts if the model shows the tested behaviour: its most likely next token is `old` in the clean run and, if
    the prompts correspond, `new` in the donor run. The metric is the logit of `new` minus that of `old` if the prompts
    correspond; otherwise the logit of `new` minus the mean of `others`, so that merely losing `old` has no effect.

    * ``effect``: mean of metric(patched) − metric(clean), logits; positive: the part carries what was changed.
    * ``whole``: the mean change that would make `new` as likely as the right answer: metric(donor) − metric(clean), or
      logit(`old`) − logit(`new`) in the clean run. ``share``: ``effect`` / ``whole``, with a 95% interval over chains
      (that of ``effect`` divided by ``whole``; NaN if all chains have the same effect).
    * ``p_value``: sign-flip test over chains, two-sided (`sign_flip_p`, for all places × tests); ``q_value``:
      Benjamini–Hochberg over places × tests of a component.
    * ``placebo_…``: the same with the logit difference of two random tokens of `others` as the metric: the effect of a
      patch on unrelated tokens. NaN if no probe of the test has two of them.
    * ``n`` of ``n_asked`` probes count; with fewer than `MIN_PROBES` chains the rest is NaN.
    """
    patched = measure_patches(model, probes, places, seed)
    return causal_table(probes, places, patched, seed)


def causal_table(
    probes: Sequence[Probe], places: Sequence[PatchTarget], patched: PatchEffects, seed: int = 0
) -> pd.DataFrame:
    """The table of `causal_tests`, from what was measured."""
    counts, wholes, effects, placebos = patched.counts, patched.whole, patched.effect, patched.placebo
    tests = np.array([probe.test for probe in probes])
    units = np.array([probe.unit for probe in probes])
    frames = []
    for test in TESTS:
        of_test = tests == test
        frame = pd.DataFrame(
            {
                "component": [place.site for place in places],
                "layer": [place.layer for place in places],
                "head": [place.head for place in places],
                "test": test,
            }
        )
        for name in CAUSAL_COLUMNS[4:-2]:
            frame[name] = np.nan
        used = of_test & counts
        frame["n"], frame["n_asked"] = int(used.sum()), int(of_test.sum())
        if len(np.unique(units[used])) >= MIN_PROBES:
            tested = len(places) * len(TESTS)
            _fill(frame, effects[used], placebos[used], units[used], wholes[used].mean(), tested, seed)
        frames.append(frame)
    table = pd.concat(frames, ignore_index=True)
    for _, of_component in table.groupby("component"):
        for p, q in (("p_value", "q_value"), ("placebo_p", "placebo_q")):
            table.loc[of_component.index, q] = benjamini_hochberg(of_component[p].to_numpy(float))
    return table[list(CAUSAL_COLUMNS)].astype({"layer": "Int64", "head": "Int64"})


def _fill(
    frame: pd.DataFrame,
    effects: np.ndarray,
    placebos: np.ndarray,
    units: np.ndarray,
    whole: float,
    tested: int,
    seed: int,
) -> None:
    def p_value(of: np.ndarray, unit: np.ndarray) -> np.ndarray:
        return sign_flip_p(_by_unit(of, unit), tests=tested, flips=2000, seed=seed)

    interval = mean_intervals(effects, units, bounds=None)
    frame["effect"], frame["whole"] = interval.delta, whole
    frame["p_value"] = p_value(effects, units)
    scale = whole if whole > 0 else np.nan
    frame["share"] = interval.delta / scale
    frame["ci_low"], frame["ci_high"] = interval.low / scale, interval.high / scale
    known = np.isfinite(placebos).all(axis=1)
    if len(np.unique(units[known])) >= MIN_PROBES:
        frame["placebo_share"] = placebos[known].mean(axis=0) / scale
        frame["placebo_p"] = p_value(placebos[known], units[known])


def _by_unit(effects: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Mean effect of each chain's probes."""
    return pd.DataFrame(effects).groupby(units).mean().to_numpy()
