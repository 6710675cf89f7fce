"""Attribution patching: the effect of every patch at once, to first order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch

from lensprune.attribution.mean_se import MeanSE
from lensprune.attribution.pairs import PromptPair, pair_batches
from lensprune.attribution.patching import same_length
from lensprune.attribution.runs import capture, run_hooked
from lensprune.attribution.sites import Direction, SiteName, check_sites, effects_table, hook_of, targets
from lensprune.engine.activations import START, KeptActivations
from lensprune.engine.gradients import gradient_rule
from lensprune.errors import UserError, unknown_name
from lensprune.models.adapt import as_hooked_model
from lensprune.models.base import AnyModel, HookedModel
from lensprune.precision import doubled

__all__ = ["attribution_patching", "metric_gradients"]

_PAIRS = 4


def attribution_patching(
    model: AnyModel,
    pairs: Sequence[PromptPair],
    sites: Sequence[SiteName] = ("head", "mlp"),
    *,
    by_position: bool = False,
    direction: Direction = "noise",
    rule: str = "plain",
    batch_size: int = _PAIRS,
) -> pd.DataFrame:
    """Estimate the effect of every patch: (source activation − base activation) · gradient of the logit difference on
    the base run (Nanda 2023; Syed et al. 2023, arXiv 2310.10348).

    One backward pass replaces one forward pass per patch. The estimate is exact where the model is linear between the
    two activations, and wrong where attention saturates: check the strongest effects with `activation_patching`.

    Args and returns: as `activation_patching`; `effect` is the first-order estimate of the same number. `rule`:
        gradient rule, ``plain``, ``relp`` or ``gim`` (`lensprune.engine.gradient_rules`).

    Raises:
        UserError: an unknown site, direction or rule, pairs of unequal length by position, no gradient at a site, or a
            model that the rule does not support.
    """
    hooked = as_hooked_model(model)
    wanted = check_sites(sites)
    if direction not in ("noise", "denoise"):
        raise unknown_name("direction", str(direction), ["noise", "denoise"])
    positions = same_length(pairs) if by_position else None
    chosen = targets(hooked.facts, wanted, positions)
    names = [hook_of(site, layer) for site in wanted for layer in range(hooked.facts.n_layers)]
    means = MeanSE(len(chosen))
    base_total = source_total = 0.0
    with gradient_rule(hooked, rule):
        for batch in pair_batches(pairs, hooked.facts.device, batch_size):
            base, source = (batch.clean, batch.corrupt) if direction == "noise" else (batch.corrupt, batch.clean)
            source_logits, donors = capture(hooked, source, names)
            metric, activations, gradients = metric_gradients(hooked, base, batch.metric, names)
            base_total += float(metric.sum())
            source_total += float(batch.metric(source_logits).sum())
            products = {}
            for name in names:
                product = doubled((donors[name] - activations[name]) * gradients[name]).sum(-1).cpu()
                products[name] = product if by_position else product.sum(1, keepdim=True)
            for place, target in enumerate(chosen):
                at_site = products[hook_of(target.site, target.layer)][:, max(target.position, 0)]
                means.add((at_site if target.head is None else at_site[:, target.head])[None], place)
    n = len(pairs)
    return effects_table(chosen, means, base_total / n, source_total / n)


def metric_gradients(
    model: HookedModel, tokens: torch.Tensor, metric: Any, names: Sequence[str]
) -> tuple[torch.Tensor, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Metric of every row, activations at the named hook points, and the gradient of the summed metric there.

    Raises:
        UserError: the metric does not depend on a hook point's activation.
    """
    activations = KeptActivations()
    kept = activations.kept
    wanted = list(dict.fromkeys([START, *names]))
    with torch.enable_grad():
        values = metric(run_hooked(model, tokens, [(name, activations.keep(name)) for name in wanted]))
        gradients = torch.autograd.grad(values.sum(), [kept[name] for name in names], allow_unused=True)
    by_name = {name: gradient for name, gradient in zip(names, gradients, strict=True) if gradient is not None}
    for name in names:
        # TransformerLens 3.9 exposes copies of Granite's branches, which are not part of the computation.
        if name not in by_name:
            raise UserError(
                f"{model.facts.architecture} has no gradient at {name} under this transformer-lens: use sites 'head' "
                "or 'resid', or activation_patching"
            )
    return values.detach(), {name: kept[name].detach() for name in names}, by_name
