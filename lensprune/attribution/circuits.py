"""Circuits: a set of edges that is kept while every other edge carries the corrupt run's values."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool

from lensprune.attribution.eap import EdgeScores
from lensprune.attribution.graph import Edge, EdgeGraph
from lensprune.attribution.pairs import PromptPair, pair_batches
from lensprune.attribution.runs import require_split_inputs
from lensprune.attribution.writers import check_additive, replace_edges, writes_of
from lensprune.engine.base import ProgressCallback
from lensprune.errors import UserError
from lensprune.models.adapt import as_hooked_model
from lensprune.models.base import AnyModel

__all__ = ["Circuit", "CircuitMetrics", "circuit_metrics", "greedy_circuit", "top_circuit"]

_PAIRS = 2


@dataclass(frozen=True)
class Circuit:
    """The edges that are kept. `requested` is the requested number of edges; pruning may leave fewer."""

    graph: EdgeGraph
    kept: Bool[torch.Tensor, "writer reader"]
    requested: int

    @property
    def edges(self) -> list[Edge]:
        """Kept edges by name, in order of depth."""
        return [Edge(self.graph.writers[w], self.graph.readers[r]) for w, r in self.kept.nonzero().tolist()]

    def heads(self) -> list[tuple[int, int]]:
        """(layer, head) of every head that a kept edge leaves."""
        places = []
        for name in dict.fromkeys(edge.source for edge in self.edges):
            if ".H" in name:
                layer, head = name[1:].split(".H")
                places.append((int(layer), int(head)))
        return places


def top_circuit(scores: EdgeScores, n_edges: int, *, absolute: bool = True, prune: bool = True) -> Circuit:
    """The edges with the largest effects; ties go to the earlier writer.

    Args:
        absolute: rank by |effect|. Otherwise by −effect, so that edges that work against the answer come last.
        prune: drop edges that lie on no path from the embedding to the logits, since they have no effect.

    Raises:
        UserError: `n_edges` below 0 or above the number of edges.
    """
    _check_size(scores, n_edges)
    ranks = _strength(scores, absolute)
    order = torch.sort(ranks.flatten(), descending=True, stable=True).indices[:n_edges]
    kept = torch.zeros(ranks.numel(), dtype=torch.bool)
    kept[order] = True
    kept = kept.view_as(ranks)
    return Circuit(scores.graph, scores.graph.connected(kept) if prune else kept, n_edges)


def greedy_circuit(scores: EdgeScores, n_edges: int, *, absolute: bool = True, prune: bool = True) -> Circuit:
    """Grow a circuit from the logits, repeatedly adding the strongest edge into a component that is already in it
    (Hanna et al. 2024, arXiv 2403.17806). Every edge is then on a path to the logits; with `prune`, also on one from
    the embedding.

    Args and errors: as `top_circuit`.
    """
    _check_size(scores, n_edges)
    graph, ranks = scores.graph, _strength(scores, absolute).tolist()
    kept = torch.zeros_like(graph.edges)
    reached: set[int] = set()
    heap: list[tuple[float, int, int]] = []

    def open_reader(reader: int) -> None:
        # Heads of a group share their key and value readers.
        if reader in reached:
            return
        reached.add(reader)
        for writer in graph.edges[:, reader].nonzero()[:, 0].tolist():
            heapq.heappush(heap, (-ranks[writer][reader], writer, reader))

    open_reader(len(graph.readers) - 1)
    for _ in range(n_edges):
        if not heap:
            break
        _, writer, reader = heapq.heappop(heap)
        kept[writer, reader] = True
        for following in graph.inputs_of[writer]:
            open_reader(following)
    return Circuit(graph, graph.connected(kept) if prune else kept, n_edges)


def _check_size(scores: EdgeScores, n_edges: int) -> None:
    if not 0 <= n_edges <= scores.graph.n_edges:
        raise UserError(f"a circuit of {n_edges} edges is not possible: the model has {scores.graph.n_edges}")


def _strength(scores: EdgeScores, absolute: bool) -> torch.Tensor:
    values = scores.values.abs() if absolute else -scores.values
    return torch.where(scores.graph.edges, values, -torch.inf)


@dataclass(frozen=True)
class CircuitMetrics:
    """Mean logit difference of the clean run, the corrupt run, and each circuit."""

    clean: float
    corrupt: float
    circuits: tuple[float, ...]

    @property
    def faithfulness(self) -> tuple[float, ...]:
        """(circuit − corrupt) / (clean − corrupt): 1 for the whole model, 0 for an empty circuit."""
        return tuple((value - self.corrupt) / (self.clean - self.corrupt) for value in self.circuits)


def circuit_metrics(
    model: AnyModel,
    pairs: Sequence[PromptPair],
    circuits: Sequence[Circuit],
    *,
    batch_size: int = _PAIRS,
    progress: ProgressCallback | None = None,
) -> CircuitMetrics:
    """Evaluate circuits: run the clean prompts with every edge outside a circuit carrying its value on the corrupt
    prompt.

    Args:
        batch_size: pairs per pass; affects only speed and memory.
        progress: called with the number of finished (circuit, pair) passes.

    Raises:
        UserError: a circuit for a model of another shape, an architecture without edges, or clean and corrupt prompts
            with the same metric.
        LensPruneError: the residual stream is not the sum of the writes into it.
    """
    hooked = as_hooked_model(model)
    graph = EdgeGraph.of(hooked.facts)
    require_split_inputs(hooked, graph.groups)
    if any(circuit.graph != graph for circuit in circuits):
        raise UserError(f"a circuit belongs to a model of another shape than {hooked.facts.name}")
    clean_total = corrupt_total = 0.0
    totals = [0.0] * len(circuits)
    for batch in pair_batches(pairs, hooked.facts.device, batch_size):
        clean_logits, clean, clean_final = writes_of(hooked, graph, batch.clean)
        corrupt_logits, corrupt, corrupt_final = writes_of(hooked, graph, batch.corrupt)
        check_additive(corrupt - clean, corrupt_final - clean_final)
        corrupt_total += float(batch.metric(corrupt_logits).cpu().double().sum())
        clean_total += float(batch.metric(clean_logits).cpu().double().sum())
        for place, circuit in enumerate(circuits):
            removed = graph.edges & ~circuit.kept
            out = replace_edges(hooked, graph, batch.clean, removed[None], corrupt)
            totals[place] += float(batch.metric(out).cpu().double().sum())
            if progress is not None:
                progress(len(batch.clean))
    n = len(pairs)
    if clean_total == corrupt_total:
        raise UserError("clean and corrupt prompts have the same logit difference: there is nothing to be faithful to")
    return CircuitMetrics(clean_total / n, corrupt_total / n, tuple(total / n for total in totals))
