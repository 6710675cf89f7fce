"""Reference activations for mean, resample and optimal ablation."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int

from lensprune.ablation.components import Component, Slot
from lensprune.ablation.kinds import AblatedSite
from lensprune.ablation.variants import Ablation, Variant, check_names
from lensprune.errors import LensPruneError, UserError, unknown_name
from lensprune.models.base import HookedModel, ModelFacts, NamedHook

__all__ = ["MeanMode", "ReferenceActivations", "check_variants", "collect_reference", "replacement", "site_of"]

MeanMode = Literal["pooled", "per_position"]

CONTRIBUTION = Slot.CONTRIBUTION.value
OPTIMAL_PROMPTS = 8


def site_of(component: Component) -> str:
    """Name of the activation that an ablation of `component` replaces; see `Component.site`."""
    return component.site


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
        UserError: a kind that takes its value from a reference, without one.
        LensPruneError: the kind's value has another shape than the activation.
    """
    kind = ablation.definition
    if kind.value is None:
        return torch.zeros_like(like)
    if kind.reference is None:
        given = None
    elif reference is None:
        raise UserError(f"{ablation.name} needs reference activations: give a reference set of prompts")
    else:
        given = reference
    computed = like if kind.reads_activation else None
    value = kind.value(AblatedSite(ablation.component, position_ids, like, given, computed))
    if value.shape != like.shape:
        raise LensPruneError(
            f"{ablation.name}: ablation {kind.name} gives a value of shape {tuple(value.shape)} for an activation of "
            f"shape {tuple(like.shape)}"
        )
    return value.to(like.dtype)


class _Recorder:
    """Keeps one prompt's activations at the wanted sites."""

    def __init__(self, sites: Iterable[str]) -> None:
        self.sites = sorted(set(sites))
        self.values: dict[str, torch.Tensor] = {}

    def hooks(self) -> list[NamedHook]:
        hooks: list[NamedHook] = []
        for site in self.sites:
            if site.endswith(CONTRIBUTION):
                block = site.removesuffix(f".{CONTRIBUTION}")
                hooks.append((f"{block}.hook_resid_pre", self._keep(site)))
                hooks.append((f"{block}.hook_resid_post", self._subtract(site)))
            else:
                hooks.append((site, self._keep(site)))
        return hooks

    def _keep(self, site: str) -> Any:
        def keep(activation: torch.Tensor, hook: Any) -> None:
            self.values[site] = activation.detach().clone()

        return keep

    def _subtract(self, site: str) -> Any:
        def subtract(activation: torch.Tensor, hook: Any) -> None:
            self.values[site] = activation.detach() - self.values[site]

        return subtract


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
    sums: dict[str, torch.Tensor] = {}
    counts = torch.zeros(max(len(p) for p in prompts), dtype=torch.float64)
    donor: dict[str, torch.Tensor] = {}
    for index, prompt in enumerate(prompts):
        wanted = mean_sites | (donor_sites if index == donor_index else set())
        if not wanted:
            continue
        recorder = _Recorder(wanted)
        ids = torch.tensor([list(prompt)], device=model.facts.device)
        positions = torch.arange(ids.shape[1], device=ids.device)[None]
        with torch.inference_mode(), model.hooks(recorder.hooks()):
            model.forward(ids, torch.ones_like(ids), positions, logits_to_keep=1)
        counts[: ids.shape[1]] += 1
        for site in mean_sites:
            value = recorder.values[site][0].double().cpu()
            if site not in sums:
                sums[site] = torch.zeros(len(counts), *value.shape[1:], dtype=torch.float64)
            sums[site][: len(value)] += value
        if index == donor_index:
            donor = {site: recorder.values[site][0] for site in donor_sites}
    dtype = next(iter(model.module.parameters())).dtype
    needed = min(2, len(prompts))
    calibrated = int((counts >= needed).sum())
    pooled, per_position = {}, {}
    for site, total in sums.items():
        pooled[site] = (total.sum(0) / counts.sum()).to(model.facts.device, dtype)
        shaped = counts[:calibrated].view(-1, *[1] * (total.ndim - 1))
        per_position[site] = (total[:calibrated] / shaped).to(model.facts.device, dtype)
    constants: dict[str, torch.Tensor] = {}
    if optimised:
        # The search runs the model with these very ablations, so it imports this module.
        from lensprune.ablation.optimal import optimal_constants

        constants = optimal_constants(model, prompts[:OPTIMAL_PROMPTS], optimised, pooled)
    identity = repr(([list(p) for p in prompts], mode, donor_seed, model.facts.weights_hash))
    return ReferenceActivations(
        mode=mode,
        pooled=pooled,
        per_position=per_position if mode == "per_position" else {},
        donor=donor,
        optimal=constants,
        description=description or f"{len(prompts)} prompts, {int(sum(len(p) for p in prompts))} tokens",
        digest=hashlib.sha256(identity.encode()).hexdigest(),
    )
