"""Scored positions of a prefix tree, unembedded in batches and summed by request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int

from lensprune.engine.layers import LayerStack
from lensprune.engine.marks import token_of
from lensprune.engine.memory import UNEMBED_ROWS
from lensprune.engine.scoring import finite_rows
from lensprune.engine.tree import PrefixTree
from lensprune.precision import widened
from lensprune.protocols.requests import LoglikelihoodRequest, LoglikelihoodResponse

__all__ = ["Scored", "TreeScorer", "scored_positions"]


@dataclass(frozen=True)
class Scored:
    """The positions of a prefix tree that predict the continuations of some requests, one request after another.

    `positions`: flat indices, ascending and distinct; `rows`: each continuation token's index into `positions`;
    `targets`: the tokens; `sizes`: continuation tokens per request.
    """

    positions: Int[torch.Tensor, " position"]
    rows: Int[torch.Tensor, " scored"]
    targets: Int[torch.Tensor, " scored"]
    sizes: list[int]

    def to(self, device: torch.device | str) -> Scored:
        return Scored(self.positions.to(device), self.rows.to(device), self.targets.to(device), self.sizes)


def scored_positions(tree: PrefixTree, requests: Sequence[LoglikelihoodRequest]) -> Scored:
    """Find the scored positions. The tree must hold every request's tokens except the last one of its continuation.

    Tokens may be `marked`.
    """
    flat = [
        position
        for request in requests
        for position in tree.flat_positions(request.input_ids, len(request.continuation_ids))
    ]
    positions, rows = torch.tensor(flat).unique(return_inverse=True)
    targets = torch.tensor([token_of(token) for request in requests for token in request.continuation_ids])
    return Scored(positions, rows, targets, [len(request.continuation_ids) for request in requests])


class TreeScorer:
    """Scored positions of one tree, and the requests that they answer."""

    def __init__(self, tree: PrefixTree, requests: dict[int, LoglikelihoodRequest]) -> None:
        self._indices = list(requests)
        self._scored = scored_positions(tree, list(requests.values()))
        # Sorted here by the positions that are unembedded together: with masks in `score`, a GPU would wait for each.
        batch = self._scored.rows // UNEMBED_ROWS
        order = batch.argsort(stable=True)
        self._sizes = batch.bincount().tolist()
        self._back = order.argsort()
        self._where = torch.stack([self._scored.rows[order] % UNEMBED_ROWS, self._scored.targets[order]])

    @property
    def positions(self) -> Int[torch.Tensor, " wanted"]:
        """Flat indices, ascending, of the residuals that `score` takes."""
        return self._scored.positions

    def score(
        self, stack: LayerStack, scored: Float[torch.Tensor, "wanted d_model"]
    ) -> dict[int, LoglikelihoodResponse]:
        self._where = self._where.to(scored.device)
        logprobs, chosen_by_argmax = [], []
        for hidden, where in zip(scored.split(UNEMBED_ROWS), self._where.split(self._sizes, 1), strict=True):
            logits = stack.logits(hidden)
            local, targets = where
            finite = finite_rows(logits)[local]
            # Not logsumexp, which rounds differently (7e-6 nats per token over 49,152 tokens on a CPU): the hooked
            # executor and lm-eval take log_softmax.
            value = widened(logits).log_softmax(-1)[local, targets]
            logprobs.append(torch.where(finite, value, torch.nan))
            chosen_by_argmax.append((logits.argmax(-1)[local] == targets) & finite)
        logprob, greedy = (torch.cat(parts).cpu()[self._back] for parts in (logprobs, chosen_by_argmax))
        pieces = zip(logprob.split(self._scored.sizes), greedy.split(self._scored.sizes), strict=True)
        return {
            index: LoglikelihoodResponse(float(mine.sum()), bool(chosen.all()), len(mine))
            for index, (mine, chosen) in zip(self._indices, pieces, strict=True)
        }
