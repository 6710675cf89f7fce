"""Optimal ablation: the constant that hurts least, so that what is lost is what the part really knew."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float

from lensprune.ablation.hooks import BatchState, VariantHooks
from lensprune.ablation.reference import ReferenceActivations, site_of
from lensprune.ablation.variants import Ablation, Variant
from lensprune.errors import LensPruneError
from lensprune.models.base import HookedModel

__all__ = ["ablation_loss", "optimal_constants"]

ITERATIONS = 20
_HISTORY = 8
_ROWS = 8


def optimal_constants(
    model: HookedModel,
    prompts: Sequence[Sequence[int]],
    ablations: Sequence[Ablation],
    means: Mapping[str, torch.Tensor],
    iterations: int = ITERATIONS,
) -> dict[str, torch.Tensor]:
    """For each component the constant a* that minimises the loss of the model with the component's activation set to a*
    at every position (Li & Janson 2024, arXiv 2409.09951, eq. 3).

    The loss is `ablation_loss`: divergence from the clean model, so no answers are needed. Each component is optimised
    with nothing else ablated, also where a variant ablates several together: the paper's joint optimum is no worse.
    L-BFGS with a strong-Wolfe line search starts from the mean activation and takes no random step.

    Args:
        ablations: of kind ``optimal``.
        means: mean activation of each site (`site_of`), where the search starts.
        iterations: of L-BFGS; each is one forward and backward pass over the prompts or a few.

    Returns:
        By `component.label`: a constant of the site's shape. For heads, rows of other heads are the mean.

    Raises:
        LensPruneError: the search ended above the loss of the mean.
    """
    batches = _batches(model, prompts)
    clean = [_log_probs(model, tokens) for tokens in batches]
    found = {}
    for ablation in dict.fromkeys(ablations):
        label = ablation.component.label
        start = means[site_of(ablation.component)].detach().float()
        with torch.no_grad():
            first = float(_loss(model, batches, clean, ablation, start))
        if first <= 0:
            found[label] = start
            continue
        constant = start.clone().requires_grad_()
        optimiser = torch.optim.LBFGS(
            [constant], max_iter=iterations, history_size=_HISTORY, line_search_fn="strong_wolfe"
        )

        # In units of the first loss: a part that matters little would otherwise meet the tolerances at once.
        optimiser.step(partial(_relative_loss, model, batches, clean, ablation, constant, first))
        with torch.no_grad():
            last = float(_loss(model, batches, clean, ablation, constant.detach()))
        if not last <= first * (1 + 1e-5):
            raise LensPruneError(
                f"{ablation.name}: the search for the optimal constant ended at a loss of {last:.4g}, above the "
                f"mean's {first:.4g}"
            )
        found[label] = constant.detach()
    return found


def ablation_loss(
    model: HookedModel, prompts: Sequence[Sequence[int]], variant: Variant, reference: ReferenceActivations | None
) -> float:
    """KL divergence (nats) from the clean model's next-token distribution to the ablated one's, mean over all positions
    of all prompts."""
    batches = _batches(model, prompts)
    clean = [_log_probs(model, tokens) for tokens in batches]
    with torch.no_grad():
        return float(_divergence(model, batches, clean, variant, reference))


def _relative_loss(
    model: HookedModel,
    batches: Sequence[torch.Tensor],
    clean: Sequence[torch.Tensor],
    ablation: Ablation,
    constant: torch.Tensor,
    unit: float,
) -> torch.Tensor:
    """The loss in units of `unit`; leaves its gradient in `constant`."""
    with torch.enable_grad():
        loss = _loss(model, batches, clean, ablation, constant) / unit
    (constant.grad,) = torch.autograd.grad(loss, [constant])
    return loss.detach()


def _loss(
    model: HookedModel,
    batches: Sequence[torch.Tensor],
    clean: Sequence[torch.Tensor],
    ablation: Ablation,
    constant: torch.Tensor,
) -> torch.Tensor:
    # The constant goes where every executor takes it from, so what is optimised is the ablation as it is defined.
    reference = replace(ReferenceActivations(), optimal={ablation.component.label: constant})
    return _divergence(model, batches, clean, Variant(ablation.name, (ablation,)), reference)


def _divergence(
    model: HookedModel,
    batches: Sequence[torch.Tensor],
    clean: Sequence[torch.Tensor],
    variant: Variant,
    reference: ReferenceActivations | None,
) -> torch.Tensor:
    total = torch.zeros((), device=model.facts.device)
    for tokens, expected in zip(batches, clean, strict=True):
        state = BatchState(_positions(tokens))
        hooks = VariantHooks(model, variant, state, reference)
        with model.hooks(hooks.named):
            logits = model.forward(tokens, torch.ones_like(tokens), _positions(tokens))
        hooks.check_fired()
        changed = torch.log_softmax(logits.float(), dim=-1)
        total = total + torch.nn.functional.kl_div(changed, expected, reduction="sum", log_target=True)
    return total / sum(tokens.numel() for tokens in batches)


def _log_probs(model: HookedModel, tokens: torch.Tensor) -> Float[torch.Tensor, "row pos d_vocab"]:
    with torch.no_grad():
        logits = model.forward(tokens, torch.ones_like(tokens), _positions(tokens))
    return torch.log_softmax(logits.float(), dim=-1)


def _positions(tokens: torch.Tensor) -> torch.Tensor:
    return torch.arange(tokens.shape[1], device=tokens.device).expand(len(tokens), -1)


def _batches(model: HookedModel, prompts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """Prompts of equal length together, so that nothing is padded."""
    by_length: dict[int, list[Sequence[int]]] = defaultdict(list)
    for prompt in prompts:
        by_length[len(prompt)].append(list(prompt))
    return [
        torch.tensor(rows[start : start + _ROWS], device=model.facts.device)
        for rows in by_length.values()
        for start in range(0, len(rows), _ROWS)
    ]
