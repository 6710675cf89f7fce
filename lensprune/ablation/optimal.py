"""Optimal ablation: the least harmful constant, so that any remaining loss is lost information."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float, Int

from lensprune.ablation.hooks import BatchState, VariantHooks
from lensprune.ablation.kinds import OPTIMAL_ITERATIONS
from lensprune.ablation.recorded import recorded
from lensprune.ablation.reference import ReferenceActivations, site_of
from lensprune.ablation.variants import Ablation, Variant
from lensprune.errors import LensPruneError
from lensprune.models.base import HookedModel, NamedHook
from lensprune.models.resume import resumed_at
from lensprune.precision import widened

__all__ = ["ablation_loss", "optimal_constants"]

_HISTORY = 8
_ROWS = 8
_NO_HOOKS: list[NamedHook] = []


@dataclass(frozen=True)
class _CleanRun:
    """Rows of tokens, the clean model's predictions, and optionally the residual stream before one layer."""

    tokens: Int[torch.Tensor, "row pos"]
    log_probs: Float[torch.Tensor, "row pos d_vocab"]
    layer: int = 0
    residual: Float[torch.Tensor, "row pos d_model"] | None = None

    def from_layer(self, model: HookedModel, layer: int) -> _CleanRun:
        """The same with the residual stream before `layer`."""
        kept: list[torch.Tensor] = []

        def keep(activation: torch.Tensor, hook: object) -> None:
            kept.append(activation.detach().clone())

        with torch.no_grad(), model.hooks([(f"blocks.{layer}.hook_resid_pre", keep)]):
            model.forward(self.tokens, torch.ones_like(self.tokens), _positions(self.tokens), logits_to_keep=1)
        return replace(self, layer=layer, residual=kept[0])


def optimal_constants(
    model: HookedModel,
    prompts: Sequence[Sequence[int]],
    ablations: Sequence[Ablation],
    means: Mapping[str, torch.Tensor],
    iterations: int = OPTIMAL_ITERATIONS,
) -> dict[str, torch.Tensor]:
    """Find for each component the constant a* that minimises the model's loss with the component's activation set to a*
    (Li & Janson 2024, arXiv 2409.09951): one for the first token, often an attention sink, and one for all others.

    The loss is `ablation_loss`: divergence from the clean model, so no answers are needed. Each component is optimised
    with nothing else ablated, even if a variant ablates several together: the paper's joint optimum is at least as
    good. L-BFGS with a strong-Wolfe line search starts from the best of zero, the mean and the median (per coordinate,
    over the prompts), and is deterministic.

    Args:
        ablations: ablations of kind ``optimal``.
        means: [2, …], mean activation of each site (`site_of`): the first token's, and that of all others.
        iterations: L-BFGS iterations; each takes one or a few forward and backward passes over the prompts.

    Returns:
        By `component.label`: [2, …], constants of the site's shape. For heads, rows of other heads are ignored.

    Raises:
        LensPruneError: the search ended above the loss of zero, the mean or the median.
    """
    runs = _clean_runs(model, prompts)
    medians = _medians(model, prompts, {site_of(ablation.component) for ablation in ablations})
    constants = {}
    for ablation in dict.fromkeys(ablations):
        label = ablation.component.label
        # Everything before the layer is independent of the constant.
        later = [run.from_layer(model, ablation.component.layer) for run in runs]
        site = site_of(ablation.component)
        starts = {"mean": widened(means[site].detach()), "median": medians[site]}
        starts["zero"] = torch.zeros_like(starts["mean"])
        with torch.no_grad():
            losses = {name: float(_loss(model, later, ablation, start)) for name, start in starts.items()}
        best = min(losses, key=losses.__getitem__)
        first = losses[best]
        if first <= 0:
            constants[label] = starts[best]
            continue
        constant = starts[best].clone().requires_grad_()
        optimiser = torch.optim.LBFGS(
            [constant], max_iter=iterations, history_size=_HISTORY, line_search_fn="strong_wolfe"
        )

        # In units of the first loss: an unimportant part would otherwise meet the tolerances immediately.
        optimiser.step(partial(_relative_loss, model, later, ablation, constant, first))
        with torch.no_grad():
            last = float(_loss(model, later, ablation, constant.detach()))
        if not last <= first * (1 + 1e-5):
            raise LensPruneError(
                f"{ablation.name}: the search for the optimal constant ended at a loss of {last:.4g}, above the "
                f"{first:.4g} of {best}"
            )
        constants[label] = constant.detach()
    return constants


def _medians(
    model: HookedModel, prompts: Sequence[Sequence[int]], sites: set[str]
) -> dict[str, Float[torch.Tensor, "two ..."]]:
    """By site, the coordinate-wise median over the prompts' first tokens and over their ordinary ones."""
    rows: dict[str, list[torch.Tensor]] = defaultdict(list)
    first: dict[str, list[torch.Tensor]] = defaultdict(list)
    for values, usual in recorded(model, prompts, lambda index: sites):
        for site, value in values.items():
            first[site].append(value[:1])
            rows[site].append(value[usual.to(value.device)])
    medians = {}
    for site in sites:
        heads, others = torch.cat(first[site]), torch.cat(rows[site])
        both = [widened(part).median(dim=0).values for part in (heads, others if len(others) else heads)]
        medians[site] = torch.stack(both)
    return medians


def ablation_loss(
    model: HookedModel, prompts: Sequence[Sequence[int]], variant: Variant, reference: ReferenceActivations | None
) -> float:
    """KL divergence (nats) from the clean model's next-token distribution to the ablated one's, mean over all positions
    of all prompts."""
    with torch.no_grad():
        return float(_divergence(model, _clean_runs(model, prompts), variant, reference))


def _relative_loss(
    model: HookedModel,
    runs: Sequence[_CleanRun],
    ablation: Ablation,
    constant: torch.Tensor,
    unit: float,
) -> torch.Tensor:
    """The loss in units of `unit`; leaves its gradient in `constant`."""
    with torch.enable_grad():
        loss = _loss(model, runs, ablation, constant) / unit
    (constant.grad,) = torch.autograd.grad(loss, [constant])
    return loss.detach()


def _loss(
    model: HookedModel,
    runs: Sequence[_CleanRun],
    ablation: Ablation,
    constant: torch.Tensor,
) -> torch.Tensor:
    # The constant is set where every executor reads it, so that the actual ablation is optimised.
    reference = replace(ReferenceActivations(), optimal={ablation.component.label: constant})
    return _divergence(model, runs, Variant(ablation.name, (ablation,)), reference)


def _divergence(
    model: HookedModel,
    runs: Sequence[_CleanRun],
    variant: Variant,
    reference: ReferenceActivations | None,
) -> torch.Tensor:
    total = torch.zeros((), device=model.facts.device)
    for run in runs:
        positions = _positions(run.tokens)
        hooks = VariantHooks(model, variant, BatchState(positions), reference)
        resumed = nullcontext(_NO_HOOKS) if run.residual is None else resumed_at(model, run.layer, run.residual)
        with resumed as start, model.hooks([*start, *hooks.named]):
            logits = model.forward(run.tokens, torch.ones_like(run.tokens), positions)
        hooks.check_fired()
        changed = torch.log_softmax(widened(logits), dim=-1)
        total = total + torch.nn.functional.kl_div(changed, run.log_probs, reduction="sum", log_target=True)
    return total / sum(run.tokens.numel() for run in runs)


def _positions(tokens: torch.Tensor) -> torch.Tensor:
    return torch.arange(tokens.shape[1], device=tokens.device).expand(len(tokens), -1)


def _clean_runs(model: HookedModel, prompts: Sequence[Sequence[int]]) -> list[_CleanRun]:
    """The clean model on the prompts; those of equal length together, so that nothing is padded."""
    by_length: dict[int, list[list[int]]] = defaultdict(list)
    for prompt in prompts:
        by_length[len(prompt)].append(list(prompt))
    runs = []
    for rows in by_length.values():
        for start in range(0, len(rows), _ROWS):
            tokens = torch.tensor(rows[start : start + _ROWS], device=model.facts.device)
            with torch.no_grad():
                logits = model.forward(tokens, torch.ones_like(tokens), _positions(tokens))
            runs.append(_CleanRun(tokens, torch.log_softmax(widened(logits), dim=-1)))
    return runs
