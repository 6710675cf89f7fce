"""The work of the forked executor: shared prefixes once, and each variant from its first changed layer on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from lensprune.ablation.components import Layer
from lensprune.ablation.variants import Variant
from lensprune.engine.edits import first_layer
from lensprune.engine.forked import ForkedExecutor
from lensprune.engine.tree import PrefixTree, Tokens, build_tree, chunk_sequences
from lensprune.planning.cost import Cost, blocks_cost, unembedding_cost
from lensprune.planning.shape import ModelShape
from lensprune.planning.unshared import batch_budget, decode_cost, unshared_cost
from lensprune.protocols.requests import GenerateRequest, LoglikelihoodRequest, Request

__all__ = ["Chunk", "forked_chunks", "shared_cost"]


@dataclass(frozen=True)
class Chunk:
    """Sequences that run together as one flat row of distinct `tokens`.

    `pairs`: (query, key) pairs that attention computes, masked ones included; `widest`: pairs of its largest single
    block; `scored`: distinct positions that are unembedded; `rows`: generated rows, each with its context length and
    the number of steps it may take.
    """

    tokens: int
    pairs: int
    widest: int
    scored: int
    rows: tuple[tuple[int, int], ...] = ()


def _pairs(tree: PrefixTree) -> tuple[int, int]:
    own = [node.length**2 for node in tree.nodes]
    below = [node.length * node.descendants for node in tree.nodes]
    return sum(own) + sum(below), max(own + below, default=0)


def forked_chunks(requests: Sequence[Request], budget: int) -> Iterator[Chunk]:
    """The prefix trees in which the forked executor runs `requests`: likelihoods first, then prompts of generations."""
    scored: dict[Tokens, int] = {}
    generated: dict[Tokens, list[GenerateRequest]] = defaultdict(list)
    for request in requests:
        if isinstance(request, LoglikelihoodRequest):
            row = (request.context_ids + request.continuation_ids)[:-1]
            scored[row] = max(scored.get(row, 0), len(request.continuation_ids))
        else:
            generated[request.context_ids].append(request)
    for sequences in chunk_sequences(list(scored), budget):
        tree = build_tree(sequences)
        positions = {p for sequence in sequences for p in tree.flat_positions(sequence, scored[sequence])}
        yield Chunk(len(tree), *_pairs(tree), len(positions))
    for sequences in chunk_sequences(list(generated), budget):
        tree = build_tree(sequences)
        rows = tuple((len(s), request.max_new_tokens - 1) for s in sequences for request in generated[s])
        yield Chunk(len(tree), *_pairs(tree), len(sequences), rows)


def shared_cost(
    shape: ModelShape, requests: Sequence[Request], variants: Sequence[Variant], budget: int | None
) -> Cost:
    """Cost of `requests` under `variants`.

    The clean model runs each chunk once. A variant resumes before its first changed layer, whose attention result it
    takes over, and a layer that is skipped as a whole costs nothing. Decoding runs every layer for every row, as many
    rows at a time as the budget holds tokens, and every row takes all its new tokens (an upper bound). Variants with
    hooks of the user's own run as the hooked executor runs them.
    """
    size = batch_budget(ForkedExecutor, budget)
    hooked = [v for v in variants if v.hooks]
    forked = [v for v in variants if not v.hooks]
    total = unshared_cost(shape, requests, len(hooked), budget)
    if not forked:
        return total
    # Clean layers run only as far as a later fork needs them.
    clean_layers = max(first_layer(v, shape.n_layers) for v in forked)
    for chunk in forked_chunks(requests, size):
        total += blocks_cost(shape, chunk.tokens, chunk.pairs, 0, clean_layers)
        for variant in forked:
            total += _variant_cost(shape, chunk, variant, clean_layers)
            total += unembedding_cost(shape, chunk.scored)
        total += _decoding(shape, chunk, len(forked), size)
    return total


def _variant_cost(shape: ModelShape, chunk: Chunk, variant: Variant, clean_layers: int) -> Cost:
    first = first_layer(variant, shape.n_layers)
    bypassed = {a.component.layer for a in variant.ablations if isinstance(a.component, Layer)}
    cost = Cost()
    for layer in range(first, shape.n_layers):
        if layer not in bypassed:
            taken_over = layer == first and first < clean_layers
            cost += blocks_cost(shape, chunk.tokens, 0 if taken_over else chunk.pairs, layer, layer + 1)
    return cost


def _decoding(shape: ModelShape, chunk: Chunk, n_variants: int, budget: int) -> Cost:
    total = Cost()
    for length, steps in chunk.rows:
        rows_a_pass = max(1.0, budget / (length + steps + 1))
        cost = decode_cost(shape, 1, length, steps) * n_variants
        total += replace(cost, passes=cost.passes / min(rows_a_pass, n_variants * len(chunk.rows)))
    return total
