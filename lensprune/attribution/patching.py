"""Activation patching: replace one activation at a time by that of another run, and measure the answer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import pandas as pd
import torch
from einops import repeat

from lensprune.attribution.mean_se import MeanSE
from lensprune.attribution.pairs import PairBatch, PromptPair, pair_batches
from lensprune.attribution.runs import Edit, capture, edit_hook, run_from
from lensprune.attribution.sites import (
    Direction,
    PatchTarget,
    SiteName,
    check_sites,
    effects_table,
    hook_of,
    targets,
)
from lensprune.engine.base import ProgressCallback
from lensprune.errors import UserError, unknown_name
from lensprune.models.adapt import as_hooked_model
from lensprune.models.base import AnyModel, HookedModel

__all__ = ["activation_patching", "same_length"]

_PAIRS = 8


def activation_patching(
    model: AnyModel,
    pairs: Sequence[PromptPair],
    sites: Sequence[SiteName] = ("head", "mlp"),
    *,
    by_position: bool = False,
    direction: Direction = "noise",
    rows: int = 32,
    progress: ProgressCallback | None = None,
) -> pd.DataFrame:
    """Measure the exact effect of every patch on the logit difference (Vig et al. 2020; Meng et al. 2022; Zhang & Nanda
    2024).

    Args:
        sites: ``resid``, ``attention``, ``mlp``, ``head``.
        by_position: patch each position separately; all pairs must then have equal length. Otherwise all positions are
            patched at once.
        direction: ``noise`` runs the clean prompt with corrupt activations: a negative effect means that the activation
            was needed. ``denoise`` runs the corrupt prompt with clean activations: a positive effect means that the
            activation suffices.
        rows: prompts per forward pass; affects only speed and memory.
        progress: called with the number of finished (patch, pair) combinations.

    Returns:
        site, layer, head, position (−1: whole), effect: mean over pairs of metric(patched) − metric(unpatched), logits;
        standard_error of that mean (NaN for one pair); share: effect divided by the metric's change between the
        prompts.

    Raises:
        UserError: an unknown site or direction, pairs of unequal length by position.
    """
    hooked = as_hooked_model(model)
    wanted = check_sites(sites)
    if direction not in ("noise", "denoise"):
        raise unknown_name("direction", str(direction), ["noise", "denoise"])
    positions = same_length(pairs) if by_position else None
    chosen = targets(hooked.facts, wanted, positions)
    means = MeanSE(len(chosen))
    base_total = source_total = 0.0
    for batch in pair_batches(pairs, hooked.facts.device, min(_PAIRS, max(1, rows))):
        base, source = (batch.clean, batch.corrupt) if direction == "noise" else (batch.corrupt, batch.clean)
        source_logits, donors = capture(hooked, source, {hook_of(target.site, target.layer) for target in chosen})
        base_logits, residuals = capture(hooked, base, {hook_of("resid", target.layer) for target in chosen})
        unpatched = batch.metric(base_logits).cpu().double()
        base_total += float(unpatched.sum())
        source_total += float(batch.metric(source_logits).sum())
        each = max(1, rows // len(base))
        for layer, group in groupby(range(len(chosen)), key=lambda place: chosen[place].layer):
            places = list(group)
            residual = residuals[hook_of("resid", layer)]
            for start in range(0, len(places), each):
                chunk = [chosen[place] for place in places[start : start + each]]
                patched = _patched(hooked, batch, base, residual, donors, chunk)
                means.add(patched.cpu().double() - unpatched, places[start])
                if progress is not None:
                    progress(len(chunk) * len(base))
    n = len(pairs)
    return effects_table(chosen, means, base_total / n, source_total / n)


def same_length(pairs: Sequence[PromptPair]) -> int:
    """The common length of all pairs; `UserError` if lengths differ."""
    lengths = sorted({len(pair.clean) for pair in pairs})
    if len(lengths) != 1:
        raise UserError(f"by position, all pairs must have the same length, but these have lengths {lengths or 'none'}")
    return lengths[0]


def _patched(
    model: HookedModel,
    batch: PairBatch,
    base: torch.Tensor,
    residual: torch.Tensor,
    donors: dict[str, torch.Tensor],
    chunk: Sequence[PatchTarget],
) -> torch.Tensor:
    """Metric [patch, pair] of patches of one layer on every pair, in one forward pass of patch × pair rows from that
    layer on."""
    n = len(base)
    by_name: dict[str, list[tuple[int, PatchTarget]]] = defaultdict(list)
    for place, target in enumerate(chunk):
        by_name[hook_of(target.site, target.layer)].append((place, target))

    def patch(name: str) -> Edit:
        def edit(activation: torch.Tensor) -> torch.Tensor:
            changed = activation.clone()
            for place, target in by_name[name]:
                rows = slice(place * n, (place + 1) * n)
                where: tuple[Any, ...] = (slice(None), slice(None) if target.position < 0 else target.position)
                if target.head is not None:
                    where = (*where, target.head)
                changed[rows][where] = donors[name][where]
            return changed

        return edit

    with torch.no_grad():
        logits = run_from(
            model,
            chunk[0].layer,
            repeat(residual, "pair pos d_model -> (patch pair) pos d_model", patch=len(chunk)),
            repeat(base, "pair pos -> (patch pair) pos", patch=len(chunk)),
            [(name, edit_hook(patch(name))) for name in by_name],
        )
    return torch.stack([batch.metric(part) for part in logits.split(n)])
