"""Edge attribution patching, plain (EAP) and with integrated gradients (EAP-IG)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from einops import einsum
from jaxtyping import Float

from lensprune.attribution.graph import EdgeGraph, ReaderGroup
from lensprune.attribution.pairs import PairBatch, PromptPair, pair_batches
from lensprune.attribution.runs import Edit, edge_inputs, edit_hook, require_split_inputs, run_hooked
from lensprune.attribution.writers import Writes, check_additive, writes_of
from lensprune.engine.base import ProgressCallback
from lensprune.engine.gradients import gradient_rule
from lensprune.errors import UserError
from lensprune.models.adapt import as_hooked_model
from lensprune.models.base import AnyModel, HookedModel, NamedHook

__all__ = ["EdgeScores", "edge_attribution"]

_PAIRS = 2


@dataclass(frozen=True)
class EdgeScores:
    """Estimated effect of corrupting each edge on the logit difference, mean over pairs (negative: the edge was
    needed). `values` is 0 where there is no edge."""

    graph: EdgeGraph
    values: Float[torch.Tensor, "writer reader"]
    steps: int

    def table(self) -> pd.DataFrame:
        """One row per edge, the strongest first: source, target, effect."""
        places = self.graph.edges.nonzero().tolist()
        writers, readers = self.graph.writers, self.graph.readers
        rows = [(writers[w], readers[r], float(self.values[w, r])) for w, r in places]
        frame = pd.DataFrame(rows, columns=["source", "target", "effect"])
        order = frame["effect"].abs().sort_values(ascending=False, kind="stable").index
        return frame.loc[order].reset_index(drop=True)


def edge_attribution(
    model: AnyModel,
    pairs: Sequence[PromptPair],
    *,
    steps: int = 5,
    rule: str = "plain",
    batch_size: int = _PAIRS,
    progress: ProgressCallback | None = None,
) -> EdgeScores:
    """Score every edge of the model by (corrupt − clean write of its source) · gradient at the input of its target.

    With `steps` m the gradient is the mean over runs whose input embeddings are corrupt + (k/m)(clean − corrupt),
    k = 1 … m (EAP-IG, Hanna et al. 2024, arXiv 2403.17806). m = 1 takes it on the clean run: EAP (Syed et
    al. 2023, arXiv 2310.10348). Scores are summed over positions. Grouped-query attention has one key and one value
    edge per key/value head. Memory: writers × positions × d_model numbers per pair.

    Args:
        steps: m; 5 is the paper's choice.
        rule: gradient rule, ``plain``, ``relp`` or ``gim`` (`lensprune.engine.gradient_rules`); the last two are meant
            for one step, and ``relp`` gives 0 for edges into queries and keys.
        batch_size: pairs per pass; affects only speed and memory.
        progress: called with the number of finished (step, pair) passes.

    Raises:
        UserError: steps below 1; an architecture whose heads do not write into the residual stream separately, or whose
            heads and MLPs have no separate inputs; or one that the rule does not support.
        LensPruneError: the residual stream is not the sum of the writes into it.
    """
    hooked = as_hooked_model(model)
    if steps < 1:
        raise UserError(f"steps {steps} of the integral is not positive: expected 1 (EAP) or more")
    graph = EdgeGraph.of(hooked.facts)
    require_split_inputs(hooked, graph.groups)
    values = torch.zeros(graph.edges.shape, dtype=torch.float64)
    with gradient_rule(hooked, rule):
        for batch in pair_batches(pairs, hooked.facts.device, batch_size):
            _, clean, clean_final = writes_of(hooked, graph, batch.clean)
            _, corrupt, corrupt_final = writes_of(hooked, graph, batch.corrupt)
            difference = corrupt - clean
            check_additive(difference, corrupt_final - clean_final)
            for step in range(1, steps + 1):
                start = corrupt[0] + (step / steps) * (clean[0] - corrupt[0])
                _add_scores(hooked, graph, batch, start, difference, values, rule)
                if progress is not None:
                    progress(len(batch.clean))
    return EdgeScores(graph, values / (steps * len(pairs)), steps)


def _add_scores(
    model: HookedModel,
    graph: EdgeGraph,
    batch: PairBatch,
    embeddings: Float[torch.Tensor, "pair pos d_model"],
    difference: Writes,
    values: Float[torch.Tensor, "writer reader"],
    rule: str,
) -> None:
    """Add difference · gradient of one run that starts from `embeddings` to `values`."""
    inputs: list[tuple[ReaderGroup, torch.Tensor]] = []

    def begin(activation: torch.Tensor) -> torch.Tensor:
        return embeddings.detach().clone().requires_grad_()

    def keep(group: ReaderGroup) -> Edit:
        def look(activation: torch.Tensor) -> torch.Tensor:
            # The MLP's input is the residual stream itself: a copy keeps the path around the MLP out of its gradient.
            copy = activation.clone()
            inputs.append((group, copy))
            return copy

        return look

    hooks: list[NamedHook] = [("blocks.0.hook_resid_pre", edit_hook(begin))]
    hooks += [(group.hook, edit_hook(keep(group))) for group in graph.groups]
    with torch.enable_grad(), edge_inputs(model):
        metric = batch.metric(run_hooked(model, batch.clean, hooks)).sum()
        # No gradient flows to queries and keys if patterns are held constant.
        seen = [(group, activation) for group, activation in inputs if rule != "relp" or not _moves_attention(group)]
        gradients = torch.autograd.grad(metric, [activation for _, activation in seen])
    for (group, _), gradient in zip(seen, gradients, strict=True):
        per_reader = gradient if group.per_head else gradient[:, :, None]
        products = einsum(
            difference[: group.writers],
            per_reader.to(difference.dtype),
            "writer row pos d_model, row pos reader d_model -> writer reader",
        )
        values[: group.writers, group.start : group.stop] += products.cpu().double()


def _moves_attention(group: ReaderGroup) -> bool:
    return group.hook.endswith(("hook_q_input", "hook_k_input"))
