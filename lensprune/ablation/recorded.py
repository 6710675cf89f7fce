"""Record the clean model's activations on prompts, and find attention sinks among the tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float

from lensprune.ablation.reference import CONTRIBUTION
from lensprune.models.base import HookedModel, NamedHook
from lensprune.precision import doubled

__all__ = ["ActivationRecorder", "ordinary_positions", "recorded"]

OUTLIER = 10.0
"""A token whose residual norm, after any block, exceeds the prompt's median by this factor is an outlier."""


def ordinary_positions(residual_norms: Float[torch.Tensor, "layer pos"]) -> Bool[torch.Tensor, " pos"]:
    """Which tokens of a prompt are not attention sinks, given the norms of the residual stream after each block.

    Sinks are the first token, and tokens whose norm is more than `OUTLIER` times the median over the prompt, after
    any block: the massive activations of Sun et al. 2024 (arXiv 2402.17762).
    """
    usual = (residual_norms <= OUTLIER * residual_norms.median(dim=1, keepdim=True).values).all(dim=0)
    usual[0] = False
    return usual


class ActivationRecorder:
    """Keeps one prompt's activations at the wanted sites, and the norms of its residual stream after each block."""

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
        self.norms.append(doubled(activation[0].detach()).norm(dim=-1).cpu())

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
    """For each prompt, run separately: the clean model's activations [pos, …] at `sites` of the prompt's index, and
    which tokens are `ordinary_positions`; prompts without sites are not run."""
    for index, prompt in enumerate(prompts):
        if not (wanted := sites(index)):
            yield {}, torch.ones(len(prompt), dtype=torch.bool)
            continue
        recorder = ActivationRecorder(wanted, model.facts.n_layers)
        ids = torch.tensor([list(prompt)], device=model.facts.device)
        positions = torch.arange(ids.shape[1], device=ids.device)[None]
        with torch.inference_mode(), model.hooks(recorder.hooks()):
            model.forward(ids, torch.ones_like(ids), positions, logits_to_keep=1)
        yield {site: value[0] for site, value in recorder.values.items()}, recorder.ordinary
