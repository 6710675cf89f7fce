"""Reference activations for mean, resample and optimal ablation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int

from lensprune.ablation.components import Component, Slot
from lensprune.ablation.kinds import AblatedSite, MeanMode
from lensprune.ablation.variants import Ablation, Variant, check_names
from lensprune.errors import LensPruneError, UserError
from lensprune.models.base import ModelFacts

__all__ = ["ReferenceActivations", "check_variants", "replacement", "site_of"]

CONTRIBUTION = Slot.CONTRIBUTION.value
OPTIMAL_PROMPTS = 8


def site_of(component: Component) -> str:
    """Name of the activation that an ablation of `component` replaces; see `Component.site`."""
    return component.site


@dataclass(frozen=True)
class ReferenceActivations:
    """Activations of the clean model on reference prompts, one entry per site (see `site_of`).

    `pooled[site]`: mean over the positions that the mode pools. `first[site]`: mean over the prompts' first tokens,
    used for first tokens in mode ``pooled``: a first token is often an attention sink, with activations a hundred times
    as large as any other's, so a common mean would resemble neither. `per_position[site]`: [pos, …], the mean over the
    prompts that reach a position, for every position that at least two prompts reach (one, if there is one prompt).
    `donor[site]`: [pos, …], the donor prompt's activations. `optimal[label]`: by component, [2, …], the constants of
    `optimal_constants` for the first token and for all others.

    Past the last calibrated position, including decode steps, ``per_position`` falls back to the pooled mean. Past the
    donor's end, `resample` wraps to the donor's positions 1, 2, …: position 0, often an attention sink, only ever
    replaces position 0.
    """

    mode: MeanMode = "pooled"
    pooled: Mapping[str, torch.Tensor] = field(default_factory=dict)
    first: Mapping[str, torch.Tensor] = field(default_factory=dict)
    per_position: Mapping[str, torch.Tensor] = field(default_factory=dict)
    donor: Mapping[str, torch.Tensor] = field(default_factory=dict)
    optimal: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def mean(self, site: str, position_ids: Int[torch.Tensor, "*rows"]) -> Float[torch.Tensor, "*rows ..."]:
        """Mean activation of `site` for tokens at `position_ids`."""
        pooled = self._get(self.pooled, site).to(position_ids.device)
        if self.mode == "pooled_all":
            return pooled.expand(*position_ids.shape, *pooled.shape)
        if self.mode == "pooled":
            first = self._get(self.first, site).to(position_ids.device)
            return torch.where(_broadcast(position_ids > 0, pooled), pooled, first)
        table = self._get(self.per_position, site).to(position_ids.device)
        values = table[position_ids.clamp(0, len(table) - 1)]
        return torch.where(_broadcast(position_ids < len(table), pooled), values, pooled)

    def resample(self, site: str, position_ids: Int[torch.Tensor, "*rows"]) -> Float[torch.Tensor, "*rows ..."]:
        """Donor activation of `site` for tokens at `position_ids`."""
        donor = self._get(self.donor, site).to(position_ids.device)
        cycle = max(len(donor) - 1, 1)
        wrapped = torch.where(position_ids < len(donor), position_ids, 1 + (position_ids - 1) % cycle)
        return donor[wrapped.clamp(0, len(donor) - 1)]

    def constant(
        self, component: Component, position_ids: Int[torch.Tensor, "*rows"]
    ) -> Float[torch.Tensor, "*rows ..."]:
        """The optimal constant of `component` for tokens at `position_ids`: the first token's, or the others'."""
        first, others = self._get(self.optimal, component.label).to(position_ids.device)
        return torch.where(_broadcast(position_ids > 0, others), others, first)

    @staticmethod
    def _get(table: Mapping[str, torch.Tensor], site: str) -> torch.Tensor:
        if site not in table:
            raise UserError(f"the reference has no activations for {site}: collect it for this variant")
        return table[site]


def _broadcast(
    chosen: Bool[torch.Tensor, "*rows"], activation: Float[torch.Tensor, ...]
) -> Bool[torch.Tensor, "*rows ..."]:
    """What holds of tokens, in a shape that goes with one activation per token."""
    return chosen.view(*chosen.shape, *[1] * activation.ndim)


def check_variants(variants: Sequence[Variant], facts: ModelFacts, reference: ReferenceActivations | None) -> None:
    """Raise `UserError` for a name used twice, a part that the model lacks, or a missing reference."""
    check_names(variants)
    for variant in variants:
        variant.check(facts)
        if variant.needs_reference and reference is None:
            raise UserError(f"{variant.name} needs reference activations: pass reference prompts")


def replacement(
    ablation: Ablation,
    reference: ReferenceActivations | None,
    position_ids: Int[torch.Tensor, "*rows"],
    like: Float[torch.Tensor, "*rows ..."],
) -> Float[torch.Tensor, "*rows ..."]:
    """The value that replaces the activation `like` at `ablation`'s site, for tokens at `position_ids`.

    Raises:
        UserError: the kind needs a reference and there is none.
        LensPruneError: the value's shape or device differs from the activation's.
    """
    kind = ablation.definition
    if kind.value is None:
        return torch.zeros_like(like)
    if kind.reference is None:
        given = None
    elif reference is None:
        raise UserError(f"{ablation.name} needs reference activations: pass reference prompts")
    else:
        given = reference
    computed = like if kind.reads_activation else None
    value = kind.value(AblatedSite(ablation.component, position_ids, like, given, computed))
    if value.shape != like.shape:
        raise LensPruneError(
            f"{ablation.name}: ablation {kind.name} gives a value of shape {tuple(value.shape)} for an activation of "
            f"shape {tuple(like.shape)}"
        )
    if value.device != like.device:
        raise LensPruneError(
            f"{ablation.name}: ablation {kind.name} gives a value on {value.device} for an activation on {like.device}"
        )
    return value.to(like.dtype)
