"""Collect reference activations from the clean model, for mean, resample and optimal ablation."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import torch
from jaxtyping import Bool, Float

from lensprune.ablation.kinds import MeanMode
from lensprune.ablation.optimal import optimal_constants
from lensprune.ablation.positions import ALL
from lensprune.ablation.recorded import recorded
from lensprune.ablation.reference import OPTIMAL_PROMPTS, ReferenceActivations, site_of
from lensprune.ablation.variants import Variant
from lensprune.errors import UserError, unknown_name
from lensprune.models.base import HookedModel

__all__ = ["collect_reference"]


class _SiteSums:
    """Sums of one site's activations, in float64, over prompts of at most `longest` tokens."""

    def __init__(self, longest: int) -> None:
        self._counts = torch.zeros(longest, dtype=torch.float64)
        self._totals: torch.Tensor | None = None
        self._usual: torch.Tensor | None = None
        self._n_usual = 0

    def add(self, values: Float[torch.Tensor, "pos ..."], usual: Bool[torch.Tensor, " pos"]) -> None:
        """Add one prompt, whose tokens in `usual` are pooled."""
        if self._totals is None or self._usual is None:
            self._totals = torch.zeros(len(self._counts), *values.shape[1:], dtype=torch.float64)
            self._usual = torch.zeros(values.shape[1:], dtype=torch.float64)
        self._totals[: len(values)] += values
        self._counts[: len(values)] += 1
        self._usual += values[usual].sum(0)
        self._n_usual += int(usual.sum())

    def means(self, n_prompts: int, model: HookedModel) -> tuple[torch.Tensor, torch.Tensor]:
        """In the model's dtype: the mean over the pooled tokens (over all if none are pooled, as in prompts of one
        token), and [pos, …], the mean at each position that at least two prompts reach (or one, if there is only
        one)."""
        assert self._totals is not None
        assert self._usual is not None
        pooled = self._usual / self._n_usual if self._n_usual else self._totals.sum(0) / self._counts.sum()
        counts = self._counts[: int((self._counts >= min(2, n_prompts)).sum())]
        by_position = self._totals[: len(counts)] / counts.view(-1, *[1] * (self._totals.ndim - 1))
        dtype = next(iter(model.module.parameters())).dtype
        return pooled.to(model.facts.device, dtype), by_position.to(model.facts.device, dtype)


def collect_reference(
    model: HookedModel,
    prompts: Sequence[Sequence[int]],
    variants: Sequence[Variant],
    *,
    mode: MeanMode = "pooled",
    donor_seed: int = 0,
) -> ReferenceActivations:
    """Run the clean model over reference prompts, and keep what `mean`, `resample` and `optimal` ablations need.

    Prompts run one at a time, so no padding enters a mean. Sums are kept in float64. The donor prompt is
    ``random.Random(donor_seed)``'s choice among the prompts. Optimal constants are searched for on the first
    `OPTIMAL_PROMPTS` prompts, one component after the other: much slower than a mean.

    Args:
        prompts: token ids of each reference prompt; never the scored items.
        variants: only their sites are recorded.

    Raises:
        UserError: no prompts, an empty prompt, one that is longer than the model's context, or an unknown mode.
    """
    _check_prompts(model, prompts, mode)
    # A value is the same wherever it is put.
    ablations = list(dict.fromkeys(replace(a, at=ALL) for v in variants for a in v.ablations))
    means_at = {site_of(a.component) for a in ablations if a.definition.reference in ("mean", "optimal")}
    donor_at = {site_of(a.component) for a in ablations if a.definition.reference == "donor"}
    sums, donor = _collect(model, prompts, means_at, donor_at, random.Random(donor_seed).randrange(len(prompts)), mode)
    means = {site: of_site.means(len(prompts), model) for site, of_site in sums.items()}
    optimised = [a for a in ablations if a.definition.reference == "optimal"]
    constants: dict[str, torch.Tensor] = {}
    if optimised:
        starts = {site: torch.stack([by_position[0], pooled]) for site, (pooled, by_position) in means.items()}
        constants = optimal_constants(model, prompts[:OPTIMAL_PROMPTS], optimised, starts)
    return ReferenceActivations(
        mode=mode,
        pooled={site: pooled for site, (pooled, _) in means.items()},
        first={site: by_position[0] for site, (_, by_position) in means.items()},
        per_position={site: m for site, (_, m) in means.items()} if mode == "per_position" else {},
        donor=donor,
        optimal=constants,
    )


def _check_prompts(model: HookedModel, prompts: Sequence[Sequence[int]], mode: MeanMode) -> None:
    if mode not in get_args(MeanMode):
        raise unknown_name("mean mode", str(mode), get_args(MeanMode))
    if not prompts:
        raise UserError(
            "mean, resample and optimal need reference prompts, and there are none: give few-shot examples or a text "
            "file"
        )
    if any(len(prompt) == 0 for prompt in prompts):
        raise UserError("a reference prompt is empty after tokenisation: remove it")
    longest = max(len(prompt) for prompt in prompts)
    if longest > model.facts.n_ctx:
        raise UserError(
            f"a reference prompt has {longest} tokens, and the context of {model.facts.name} holds "
            f"{model.facts.n_ctx}: cut it to that length"
        )


def _collect(
    model: HookedModel,
    prompts: Sequence[Sequence[int]],
    means_at: set[str],
    donor_at: set[str],
    donor_index: int,
    mode: MeanMode,
) -> tuple[dict[str, _SiteSums], dict[str, torch.Tensor]]:
    """Sums over the prompts at the sites `means_at`, and the donor prompt's activations at the sites `donor_at`."""
    sums = {site: _SiteSums(max(len(prompt) for prompt in prompts)) for site in means_at}
    donor: dict[str, torch.Tensor] = {}

    def wanted(index: int) -> set[str]:
        return means_at | (donor_at if index == donor_index else set())

    for index, (values, usual) in enumerate(recorded(model, prompts, wanted)):
        for site, of_site in sums.items():
            of_site.add(values[site].cpu().double(), torch.ones_like(usual) if mode == "pooled_all" else usual)
        if index == donor_index:
            donor = {site: values[site] for site in donor_at}
    return sums, donor
