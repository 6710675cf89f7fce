"""Reference activations for mean, resample and optimal ablation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Int

from lensprune.ablation.components import MLP, Attention, Component, Layer
from lensprune.ablation.variants import Ablation, Variant, check_names
from lensprune.errors import UserError
from lensprune.models.base import ModelFacts

__all__ = ["MeanMode", "ReferenceActivations", "check_variants", "replacement", "site_of"]

MeanMode = Literal["pooled", "per_position"]

CONTRIBUTION = "contribution"
OPTIMAL_PROMPTS = 8


def site_of(component: Component) -> str:
    """Name of the activation that an ablation of `component` replaces.

    A hook name for branches and heads; for a layer ``blocks.{l}.contribution``, which stands for
    ``hook_resid_post − hook_resid_pre``.
    """
    block = f"blocks.{component.layer}"
    if isinstance(component, Layer):
        return f"{block}.{CONTRIBUTION}"
    if isinstance(component, Attention):
        return f"{block}.hook_attn_out"
    if isinstance(component, MLP):
        return f"{block}.hook_mlp_out"
    return f"{block}.attn.hook_z"


@dataclass(frozen=True)
class ReferenceActivations:
    """Activations of the clean model on reference prompts, one entry per site (see `site_of`).

    `pooled[site]`: mean over all positions of all prompts. `per_position[site]`: [pos, …], the mean over the prompts
    that reach a position, for every position that at least two prompts reach (one, if there is one prompt).
    `donor[site]`: [pos, …], the donor prompt's activations. `optimal[label]`: by component, the constant of
    `optimal_constants`, in the site's shape. `digest` identifies prompts, mode and donor.

    Past the last calibrated position, decode steps included, ``per_position`` falls back on the pooled mean. Past the
    donor's end, `resample` goes round through the donor's positions 1, 2, …: position 0, often an attention sink, only
    ever replaces position 0.
    """

    mode: MeanMode = "pooled"
    pooled: Mapping[str, torch.Tensor] = field(default_factory=dict)
    per_position: Mapping[str, torch.Tensor] = field(default_factory=dict)
    donor: Mapping[str, torch.Tensor] = field(default_factory=dict)
    optimal: Mapping[str, torch.Tensor] = field(default_factory=dict)
    description: str = ""
    digest: str = ""

    def mean(self, site: str, position_ids: Int[torch.Tensor, "*rows"]) -> Float[torch.Tensor, "*rows ..."]:
        """Mean activation of `site` for tokens at `position_ids`."""
        pooled = self._get(self.pooled, site).to(position_ids.device)
        if self.mode == "pooled":
            return pooled.expand(*position_ids.shape, *pooled.shape)
        table = self._get(self.per_position, site).to(position_ids.device)
        values = table[position_ids.clamp(0, len(table) - 1)]
        calibrated = (position_ids < len(table)).view(*position_ids.shape, *[1] * pooled.ndim)
        return torch.where(calibrated, values, pooled)

    def resample(self, site: str, position_ids: Int[torch.Tensor, "*rows"]) -> Float[torch.Tensor, "*rows ..."]:
        """Donor activation of `site` for tokens at `position_ids`."""
        donor = self._get(self.donor, site).to(position_ids.device)
        cycle = max(len(donor) - 1, 1)
        wrapped = torch.where(position_ids < len(donor), position_ids, 1 + (position_ids - 1) % cycle)
        return donor[wrapped.clamp(0, len(donor) - 1)]

    def constant(
        self, component: Component, position_ids: Int[torch.Tensor, "*rows"]
    ) -> Float[torch.Tensor, "*rows ..."]:
        """The optimal constant of `component`, the same for tokens at all `position_ids`."""
        value = self._get(self.optimal, component.label).to(position_ids.device)
        return value.expand(*position_ids.shape, *value.shape)

    @staticmethod
    def _get(table: Mapping[str, torch.Tensor], site: str) -> torch.Tensor:
        if site not in table:
            raise UserError(f"the reference has no activations for {site}: collect it for this variant")
        return table[site]


def check_variants(variants: Sequence[Variant], facts: ModelFacts, reference: ReferenceActivations | None) -> None:
    """Raise `UserError` for a name used twice, a part that the model lacks, or a missing reference."""
    check_names(variants)
    for variant in variants:
        variant.check(facts)
        if variant.needs_reference and reference is None:
            raise UserError(f"{variant.name} needs reference activations: give a reference set of prompts")


def replacement(
    ablation: Ablation,
    reference: ReferenceActivations | None,
    position_ids: Int[torch.Tensor, "*rows"],
    like: Float[torch.Tensor, "*rows ..."],
) -> Float[torch.Tensor, "*rows ..."]:
    """The value that takes the place of the activation `like` at `ablation`'s site, for tokens at `position_ids`.

    Raises:
        UserError: `mean`, `resample` or `optimal` without a reference.
    """
    if ablation.kind in ("skip", "zero"):
        return torch.zeros_like(like)
    if reference is None:
        raise UserError(f"{ablation.name} needs reference activations: give a reference set of prompts")
    if ablation.kind == "optimal":
        return reference.constant(ablation.component, position_ids).to(like.dtype)
    table = reference.mean if ablation.kind == "mean" else reference.resample
    return table(site_of(ablation.component), position_ids).to(like.dtype)
