"""Reference activations for mean, resample and optimal ablation."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int

from lensprune.ablation.components import MLP, Attention, Component, Layer
from lensprune.ablation.variants import Ablation, Variant, check_names
from lensprune.errors import UserError, unknown_name
from lensprune.models.base import HookedModel, ModelFacts, NamedHook

__all__ = [
    "MeanMode",
    "ReferenceActivations",
    "check_variants",
    "collect_reference",
    "ordinary_positions",
    "recorded",
    "replacement",
    "site_of",
]

MeanMode = Literal["pooled", "pooled_all", "per_position"]
"""``pooled``: over ordinary positions (see `ordinary_positions`), with the first token's own mean for the first token.
``pooled_all``: one mean over all positions. ``per_position``: position by position."""

CONTRIBUTION = "contribution"
OPTIMAL_PROMPTS = 8
OUTLIER = 10.0
"""A token whose residual norm is more than so many times the prompt's median, behind any block, is an outlier."""


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

    `pooled[site]`: mean over the positions that the mode pools. `first[site]`: mean over the prompts' first tokens,
    which take it in mode ``pooled``: a first token is often an attention sink, with activations a hundred times as
    large as any other's, and one mean over both is near neither. `per_position[site]`: [pos, …], the mean over the
    prompts that reach a position, for every position that at least two prompts reach (one, if there is one prompt).
    `donor[site]`: [pos, …], the donor prompt's activations. `optimal[label]`: by component, [2, …], the constants of
    `optimal_constants` for the first token and for all others. `digest` identifies prompts, mode and donor.

    Past the last calibrated position, decode steps included, ``per_position`` falls back on the pooled mean. Past the
    donor's end, `resample` goes round through the donor's positions 1, 2, …: position 0, often an attention sink, only
    ever replaces position 0.
    """

    mode: MeanMode = "pooled"
    pooled: Mapping[str, torch.Tensor] = field(default_factory=dict)
    first: Mapping[str, torch.Tensor] = field(default_factory=dict)
    per_position: Mapping[str, torch.Tensor] = field(default_factory=dict)
    donor: Mapping[str, torch.Tensor] = field(default_factory=dict)
    optimal: Mapping[str, torch.Tensor] = field(default_factory=dict)
    description: str = ""
    digest: str = ""

    def mean(self, site: str, position_ids: Int[torch.Tensor, "*rows"]) -> Float[torch.Tensor, "*rows ..."]:
        """Mean activation of `site` for tokens at `position_ids`."""
        pooled = self._get(self.pooled, site).to(position_ids.device)
        if self.mode == "pooled_all":
            return pooled.expand(*position_ids.shape, *pooled.shape)
        if self.mode == "pooled":
            first = self._get(self.first, site).to(position_ids.device)
            return torch.stack([first, pooled])[(position_ids > 0).long()]
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
        """The optimal constant of `component` for tokens at `position_ids`: the first token's, or the others'."""
        return self._get(self.optimal, component.label).to(position_ids.device)[(position_ids > 0).long()]

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


def ordinary_positions(residual_norms: Float[torch.Tensor, "layer pos"]) -> Bool[torch.Tensor, " pos"]:
    """Which tokens of a prompt are no attention sinks, given the norms of the residual stream behind each block.

    Sinks are the first token, and tokens whose norm is more than `OUTLIER` times the median over the prompt, behind
    any block: the massive activations of Sun et al. 2024 (arXiv 2402.17762).
    """
    usual = (residual_norms <= OUTLIER * residual_norms.median(dim=1, keepdim=True).values).all(dim=0)
    usual[0] = False
    return usual


class _Recorder:
    """Keeps one prompt's activations at the wanted sites, and the norms of its residual stream behind each block."""

    def __init__(self, sites: Iterable[str], n_layers: int) -> None:
        self.sites = sorted(set(sites))
        self.values: dict[str, torch.Tensor] = {}
        self.norms: list[torch.Tensor] = []
        self._n_layers = n_layers

    def hooks(self) -> list[NamedHook]:
        hooks: list[NamedHook] = [(f"blocks.{i}.hook_resid_post", self._measure) for i in range(self._n_layers)]
        for site in self.sites:
            if site.endswith(CONTRIBUTION):
                block = site.removesuffix(f".{CONTRIBUTION}")
                hooks.append((f"{block}.hook_resid_pre", self._keep(site)))
                hooks.append((f"{block}.hook_resid_post", self._subtract(site)))
            else:
                hooks.append((site, self._keep(site)))
        return hooks

    @property
    def ordinary(self) -> Bool[torch.Tensor, " pos"]:
        """The prompt's `ordinary_positions`."""
        return ordinary_positions(torch.stack(self.norms))

    def _measure(self, activation: torch.Tensor, hook: Any) -> None:
        self.norms.append(activation[0].detach().double().norm(dim=-1).cpu())

    def _keep(self, site: str) -> Any:
        def keep(activation: torch.Tensor, hook: Any) -> None:
            self.values[site] = activation.detach().clone()

        return keep

    def _subtract(self, site: str) -> Any:
        def subtract(activation: torch.Tensor, hook: Any) -> None:
            self.values[site] = activation.detach() - self.values[site]

        return subtract


def recorded(
    model: HookedModel, prompts: Sequence[Sequence[int]], sites: Callable[[int], set[str]]
) -> Iterator[tuple[dict[str, torch.Tensor], Bool[torch.Tensor, " pos"]]]:
    """Of each prompt, run by itself: the clean model's activations [pos, …] at `sites` of its index, and which of its
    tokens are `ordinary_positions`; nothing runs where no site is wanted."""
    for index, prompt in enumerate(prompts):
        if not (wanted := sites(index)):
            yield {}, torch.ones(len(prompt), dtype=torch.bool)
            continue
        recorder = _Recorder(wanted, model.facts.n_layers)
        ids = torch.tensor([list(prompt)], device=model.facts.device)
        positions = torch.arange(ids.shape[1], device=ids.device)[None]
        with torch.inference_mode(), model.hooks(recorder.hooks()):
            model.forward(ids, torch.ones_like(ids), positions, logits_to_keep=1)
        yield {site: value[0] for site, value in recorder.values.items()}, recorder.ordinary


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
    optimised = [a for a in ablations if a.kind == "optimal"]
    mean_sites = {site_of(a.component) for a in ablations if a.kind in ("mean", "optimal")}
    donor_sites = {site_of(a.component) for a in ablations if a.kind == "resample"}
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
        # The search runs the model with these very ablations, so it imports this module.
        from lensprune.ablation.optimal import optimal_constants

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
