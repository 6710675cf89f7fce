"""Collecting reference activations from the clean model, for mean, resample and optimal ablation."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Sequence
from typing import Any, get_args

import torch

from lensprune.ablation.optimal import optimal_constants
from lensprune.ablation.reference import CONTRIBUTION, OPTIMAL_PROMPTS, MeanMode, ReferenceActivations, site_of
from lensprune.ablation.variants import Variant
from lensprune.errors import UserError, unknown_name
from lensprune.models.base import HookedModel, NamedHook

__all__ = ["collect_reference"]


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
