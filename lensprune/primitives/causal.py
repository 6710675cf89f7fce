"""Causal tests: patch a part's activation from one run into another to see whether it carries what differs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int

from lensprune.analysis.intervals import mean_intervals
from lensprune.analysis.multiplicity import benjamini_hochberg
from lensprune.analysis.randomization import sign_flip_p
from lensprune.attribution.runs import Edit, capture, edit_hook, run_from
from lensprune.attribution.sites import PatchTarget, hook_of
from lensprune.models.base import HookedModel
from lensprune.primitives.probes import TESTS, Probe

__all__ = ["CAUSAL_COLUMNS", "MIN_PROBES", "causal_tests"]

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
MIN_PROBES = 6
_ROWS = 64
_PAIRS = 16


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
    wholes, counts, effects, placebos = _measure_all(model, probes, places, seed)
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


def _measure_all(
    model: HookedModel, probes: Sequence[Probe], places: Sequence[PatchTarget], seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """`_measure` of probes of any shapes, those of one shape together."""
    groups: dict[tuple[int, int, bool], list[int]] = defaultdict(list)
    for index, probe in enumerate(probes):
        groups[len(probe.clean), len(probe.donor), probe.everywhere].append(index)
    effects = np.full((len(probes), len(places)), np.nan)
    placebos = np.full((len(probes), len(places)), np.nan)
    wholes, counts = np.full(len(probes), np.nan), np.zeros(len(probes), bool)
    generator = np.random.default_rng(seed)
    for indices in groups.values():
        for start in range(0, len(indices), _PAIRS):
            chosen = indices[start : start + _PAIRS]
            measured = _measure(model, [probes[i] for i in chosen], places, generator)
            wholes[chosen], counts[chosen], effects[chosen], placebos[chosen] = measured
    return wholes, counts, effects, placebos


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


def _measure(
    model: HookedModel, probes: Sequence[Probe], places: Sequence[PatchTarget], generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Whole change [probe], whether it counts [probe], effect and placebo effect [probe, place], for probes of equal
    shape."""
    device = model.facts.device
    clean = torch.tensor([probe.clean for probe in probes], device=device)
    donor = torch.tensor([probe.donor for probe in probes], device=device)
    donor_logits, donors = capture(model, donor, {hook_of(place.site, place.layer) for place in places})
    clean_logits, residuals = capture(model, clean, {hook_of("resid", place.layer) for place in places})
    scores = _Scores(probes, generator)
    before, placebo_before = scores.metric(clean_logits), scores.placebo(clean_logits)
    effects, placebos = np.empty((len(probes), len(places))), np.empty((len(probes), len(places)))
    for place, logits in _patched(model, clean, residuals, donors, places, everywhere=scores.everywhere):
        effects[:, place] = scores.metric(logits) - before
        placebos[:, place] = scores.placebo(logits) - placebo_before
    return scores.wholes(clean_logits, donor_logits), scores.counts(clean_logits, donor_logits), effects, placebos


class _Scores:
    """Metrics of the last logits, for probes of equal shape."""

    def __init__(self, probes: Sequence[Probe], generator: np.random.Generator) -> None:
        self.everywhere = probes[0].everywhere
        self._others = [list(probe.others) for probe in probes]
        self._pairs = [_two(probe.others, generator) for probe in probes]
        self._old = torch.tensor([probe.old for probe in probes])
        self._new = torch.tensor([probe.new for probe in probes])

    @staticmethod
    def _at(logits: Float[torch.Tensor, "probe d_vocab"], token: torch.Tensor) -> Float[torch.Tensor, " probe"]:
        return logits.cpu().double().gather(1, token[:, None])[:, 0]

    def metric(self, logits: Float[torch.Tensor, "probe d_vocab"]) -> np.ndarray:
        """Logit of `new` minus that of `old`, or minus the mean of `others` if the prompts don't correspond."""
        if self.everywhere:
            return (self._at(logits, self._new) - self._at(logits, self._old)).numpy()
        others = [row[chosen].mean() for row, chosen in zip(logits.cpu().double(), self._others, strict=True)]
        return (self._at(logits, self._new) - torch.stack(others)).numpy()

    def placebo(self, logits: Float[torch.Tensor, "probe d_vocab"]) -> np.ndarray:
        """Logit difference of two random tokens of `others`; NaN with fewer than two."""
        rows = zip(logits.cpu().double(), self._pairs, strict=True)
        return np.array([float(row[two[0]] - row[two[1]]) if two else np.nan for row, two in rows])

    def wholes(
        self, clean: Float[torch.Tensor, "probe d_vocab"], donor: Float[torch.Tensor, "probe d_vocab"]
    ) -> np.ndarray:
        """The change that would make `new` as likely as the right answer."""
        if self.everywhere:
            return self.metric(donor) - self.metric(clean)
        return (self._at(clean, self._old) - self._at(clean, self._new)).numpy()

    def counts(
        self, clean: Float[torch.Tensor, "probe d_vocab"], donor: Float[torch.Tensor, "probe d_vocab"]
    ) -> np.ndarray:
        """Whether the model shows the tested behaviour: `old` in the clean run and, if prompts correspond, `new` in the
        donor run."""
        right = clean.argmax(-1).cpu() == self._old
        return (right & (donor.argmax(-1).cpu() == self._new) if self.everywhere else right).numpy()


def _patched(
    model: HookedModel,
    clean: Int[torch.Tensor, "probe pos"],
    residuals: Mapping[str, torch.Tensor],
    donors: Mapping[str, torch.Tensor],
    places: Sequence[PatchTarget],
    *,
    everywhere: bool,
) -> Iterator[tuple[int, Float[torch.Tensor, "probe d_vocab"]]]:
    """Last logits with each part patched, with its index in `places`; several parts of a layer share a call."""
    n = len(clean)
    for layer in sorted({place.layer for place in places}):
        of_layer = [i for i, place in enumerate(places) if place.layer == layer]
        each = max(1, _ROWS // n)
        for chunk in (of_layer[start : start + each] for start in range(0, len(of_layer), each)):
            edits = [
                (hook_of(places[j].site, layer), edit_hook(_patch(places[j], block, n, donors, everywhere)))
                for block, j in enumerate(chunk)
            ]
            residual = repeat(
                residuals[hook_of("resid", layer)], "probe pos d -> (place probe) pos d", place=len(chunk)
            )
            tokens = repeat(clean, "probe pos -> (place probe) pos", place=len(chunk))
            with torch.no_grad():
                logits = run_from(model, layer, residual, tokens, edits)
            yield from zip(chunk, rearrange(logits, "(place probe) token -> place probe token", probe=n), strict=True)


def _two(others: Sequence[int], generator: np.random.Generator) -> tuple[int, int] | None:
    if len(others) < 2:
        return None
    first, second = generator.permutation(len(others))[:2]
    return others[int(first)], others[int(second)]


def _patch(place: PatchTarget, block: int, n: int, donors: Mapping[str, torch.Tensor], everywhere: bool) -> Edit:
    """Put the donor's activation into the rows `block` × n to (`block` + 1) × n."""
    value = donors[hook_of(place.site, place.layer)]

    def edit(activation: torch.Tensor) -> torch.Tensor:
        changed = activation.clone()
        rows = slice(block * n, (block + 1) * n)
        positions: Any = slice(None) if everywhere else -1
        source: Any = (slice(None), positions)
        where: Any = (rows, positions)
        if place.head is not None:
            where, source = (*where, place.head), (*source, place.head)
        changed[where] = value[source]
        return changed

    return edit
