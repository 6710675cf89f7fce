"""Collecting reference activations from the clean model, for mean, resample and optimal ablation."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import get_args

import torch
from jaxtyping import Bool, Float

from lensprune.ablation.kinds import MeanMode
from lensprune.ablation.optimal import optimal_constants
from lensprune.ablation.recorded import recorded
from lensprune.ablation.reference import OPTIMAL_PROMPTS, ReferenceActivations, site_of
from lensprune.ablation.variants import Variant
from lensprune.errors import UserError, unknown_name
from lensprune.models.base import HookedModel

__all__ = ["collect_reference"]


class _SiteMeans:
    """Sums of one site's activations, in float64, over prompts of at most `longest` tokens."""

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._totals: torch.Tensor | None = None
        self._usual: torch.Tensor | None = None
        self._n_usual = 0

    def add(self, values: Float[torch.Tensor, "pos ..."], usual: Bool[torch.Tensor, " pos"]) -> None:
        """Add one prompt, whose tokens in `usual` are pooled."""
        if self._totals is None or self._usual is None:
            self._totals = torch.zeros(self._longest, *values.shape[1:], dtype=torch.float64)
            self._usual = torch.zeros(values.shape[1:], dtype=torch.float64)
        self._totals[: len(values)] += values
        self._usual += values[usual].sum(0)
        self._n_usual += int(usual.sum())

    def pooled(self, counts: Float[torch.Tensor, " pos"]) -> torch.Tensor:
        """The mean over the pooled tokens; over all tokens where there are none, as in prompts of one token."""
        assert self._totals is not None
        assert self._usual is not None
        return self._usual / self._n_usual if self._n_usual else self._totals.sum(0) / counts.sum()

    def by_position(self, counts: Float[torch.Tensor, " pos"]) -> torch.Tensor:
        """[pos, …], the mean at each position, which `counts` prompts reach."""
        assert self._totals is not None
        return self._totals[: len(counts)] / counts.view(-1, *[1] * (self._totals.ndim - 1))


def collect_reference(
    model: HookedModel,
    prompts: Sequence[Sequence[int]],
    variants: Sequence[Variant],
    *,
    mode: MeanMode = "pooled",
    donor_seed: int = 0,
    description: str = "",
) -> ReferenceActivations:
    """Run the clean model over reference prompts and keep what the variants' `mean`, `resample` and `optimal` need.

    Prompts run one at a time, so no padding enters a mean. Sums are kept in float64. The donor prompt is
    ``random.Random(donor_seed)``'s choice among the prompts. Optimal constants are searched for on the first
    `OPTIMAL_PROMPTS` prompts, one component after the other: much slower than a mean.

    Args:
        prompts: token ids of each reference prompt; never the scored items.
        variants: only their sites are recorded.

    Raises:
        UserError: no prompts, an empty prompt, one that is longer than the model's context, or an unknown mode.
    """
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
    ablations = [a for v in variants for a in v.ablations]
    optimised = [a for a in ablations if a.definition.reference == "optimal"]
    mean_sites = {site_of(a.component) for a in ablations if a.definition.reference in ("mean", "optimal")}
    donor_sites = {site_of(a.component) for a in ablations if a.definition.reference == "donor"}
    donor_index = random.Random(donor_seed).randrange(len(prompts))
    sites = {site: _SiteMeans(longest) for site in mean_sites}
    counts = torch.zeros(longest, dtype=torch.float64)
    donor: dict[str, torch.Tensor] = {}

    def wanted(index: int) -> set[str]:
        return mean_sites | (donor_sites if index == donor_index else set())

    for index, (values, usual) in enumerate(recorded(model, prompts, wanted)):
        counts[: len(usual)] += 1
        for site, means in sites.items():
            means.add(values[site].double().cpu(), torch.ones_like(usual) if mode == "pooled_all" else usual)
        if index == donor_index:
            donor = {site: values[site] for site in donor_sites}
    dtype = next(iter(model.module.parameters())).dtype
    calibrated = int((counts >= min(2, len(prompts))).sum())
    pooled, first, per_position = {}, {}, {}
    for site, means in sites.items():
        by_position = means.by_position(counts[:calibrated]).to(model.facts.device, dtype)
        pooled[site], first[site] = means.pooled(counts).to(model.facts.device, dtype), by_position[0]
        per_position[site] = by_position
    constants: dict[str, torch.Tensor] = {}
    if optimised:
        means_of = {site: torch.stack([first[site], pooled[site]]) for site in sites}
        constants = optimal_constants(model, prompts[:OPTIMAL_PROMPTS], optimised, means_of)
    identity = repr(([list(p) for p in prompts], mode, donor_seed, model.facts.weights_hash))
    return ReferenceActivations(
        mode=mode,
        pooled=pooled,
        first=first,
        per_position=per_position if mode == "per_position" else {},
        donor=donor,
        optimal=constants,
        description=description or f"{len(prompts)} prompts, {int(sum(len(p) for p in prompts))} tokens",
        digest=hashlib.sha256(identity.encode()).hexdigest(),
    )
