"""The work of the forked executor: shared prefixes once, and each variant from its first changed layer on."""

from __future__ import annotations

import inspect
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from lensprune.ablation.variants import Variant
from lensprune.costs.cost import Cost, blocks_cost, last_block_cost, unembedding_cost
from lensprune.costs.shape import ModelShape
from lensprune.costs.unshared import batch_budget, unshared_cost
from lensprune.engine.decoding.groups import ChunkSize, group_variants, request_chunks
from lensprune.engine.decoding.prompts import PromptSet
from lensprune.engine.edits import first_layer
from lensprune.engine.forked import BLOCK_VARIANTS, ForkedExecutor
from lensprune.engine.limits import DecodeLimits
from lensprune.engine.tree import PrefixTree, Tokens, build_tree, chunk_sequences
from lensprune.models.base import ModelFacts
from lensprune.protocols.requests import GenerateRequest, LoglikelihoodRequest, Request

__all__ = ["Chunk", "decode_chunks", "forked_limits", "likelihood_chunks", "shared_cost", "shared_costs"]


@dataclass(frozen=True)
class Chunk:
    """Sequences that run together as one flat row of distinct `tokens`, under `variants`.

    `pairs`: (query, key) pairs that attention computes, masked ones included, and `last_pairs` those of the scored
    positions alone; `widest`: pairs of its largest single block; `scored`: distinct positions that are unembedded;
    `rows`: for each generated row of one variant its prompt's length and the number of steps that it may take;
    `groups`: how many variants fit at once, group by group, if all texts are long; `kv_bytes`: most keys and values
    held while it decodes; `kv_read`: positions whose keys and values all decode steps together read, at one layer of
    one variant.
    """

    variants: tuple[Variant, ...]
    tokens: int
    pairs: int
    widest: int
    last_pairs: int
    scored: int
    rows: tuple[tuple[int, int], ...] = ()
    groups: tuple[int, ...] = ()
    kv_bytes: int = 0
    kv_read: float = 0.0

    @property
    def steps(self) -> int:
        """Decode steps if each row takes all of its own: then no group begins before the one before it has ended."""
        return len(self.groups) * max((steps for _, steps in self.rows), default=0)

    @property
    def rows_at_once(self) -> int:
        """Rows in a step, if each row takes all of its own steps."""
        return max(self.groups, default=0) * len(self.rows)


def _pairs(tree: PrefixTree, wanted: Iterable[int]) -> tuple[int, int, int]:
    """All (query, key) pairs, those of the largest block, and those of the wanted positions."""
    within = [node.length**2 for node in tree.nodes]
    below = [node.length * node.descendants for node in tree.nodes]
    ordered = sorted(wanted)
    last = [
        node.length * (bisect_left(ordered, node.subtree_end) - bisect_left(ordered, node.start)) for node in tree.nodes
    ]
    return sum(within) + sum(below), max(within + below, default=0), sum(last)


def forked_limits(budget: int | DecodeLimits | None) -> DecodeLimits:
    """Budgets of the forked executor: as requested, or its defaults, with `batch_tokens` tokens per batch."""
    if isinstance(budget, DecodeLimits):
        return budget
    defaults = inspect.signature(ForkedExecutor).parameters
    rows, size = defaults["max_rows"].default, defaults["max_kv_bytes"].default
    return DecodeLimits(rows, size, batch_budget(ForkedExecutor, budget))


def likelihood_chunks(requests: Sequence[Request], variants: Sequence[Variant], budget: int) -> Iterator[Chunk]:
    """The prefix trees in which the forked executor scores the likelihoods among `requests`."""
    scored: dict[Tokens, int] = {}
    for request in requests:
        if isinstance(request, LoglikelihoodRequest):
            row = request.input_ids
            scored[row] = max(scored.get(row, 0), len(request.continuation_ids))
    for sequences in chunk_sequences(list(scored), budget):
        tree = build_tree(sequences)
        positions = {p for sequence in sequences for p in tree.flat_positions(sequence, scored[sequence])}
        yield Chunk(tuple(variants), len(tree), *_pairs(tree, positions), len(positions))


def decode_chunks(
    requests: Sequence[Request], variants: Sequence[Variant], facts: ModelFacts, limits: DecodeLimits
) -> Iterator[Chunk]:
    """The variants and prompts that each decoder of the forked executor is given."""
    generated = {i: r for i, r in enumerate(requests) if isinstance(r, GenerateRequest)}
    if not generated:
        return
    for begin in range(0, len(variants), BLOCK_VARIANTS):
        # In the order in which they are admitted.
        block = sorted(variants[begin : begin + BLOCK_VARIANTS], key=lambda v: first_layer(v, facts.n_layers))
        for chunk in request_chunks(generated, block, facts, limits):
            members = list(chunk.values())
            prompts = PromptSet.of([request.context_ids for request in members])
            size, groups = ChunkSize(facts, members), list(group_variants(block, facts, [chunk], limits))
            # Groups overlap where texts end early, within the limit.
            held = max([min(size.kv_bytes(block), limits.kv_bytes), *map(size.kv_bytes, groups)])
            yield Chunk(
                tuple(block),
                len(prompts.tree),
                *_pairs(prompts.tree, prompts.last_token.tolist()),
                len(prompts),
                rows=tuple((len(request.context_ids), request.max_new_tokens - 1) for request in members),
                groups=tuple(map(len, groups)),
                kv_bytes=held,
                kv_read=_positions_read(prompts, members),
            )


def _positions_read(prompts: PromptSet, requests: Sequence[GenerateRequest]) -> float:
    """Positions that all decode steps attend to: of a shared prefix once a step, of each row's rest and new tokens."""
    shared = {p: prefix.end - prefix.start for prefix in prompts.prefixes for p in range(prefix.first, prefix.last)}
    place = {prompt: i for i, prompt in enumerate(prompts.prompts)}
    total, longest = 0.0, 0
    for request in requests:
        steps = request.max_new_tokens - 1
        rest = len(request.context_ids) - shared.get(place[request.context_ids], 0)
        total += steps * rest + steps * (steps + 1) / 2
        longest = max(longest, steps)
    return total + longest * sum(prefix.end - prefix.start for prefix in prompts.prefixes)


def shared_cost(
    shape: ModelShape,
    facts: ModelFacts,
    requests: Sequence[Request],
    variants: Sequence[Variant],
    budget: int | DecodeLimits | None,
) -> Cost:
    """Cost of `requests` under `variants` together: the sum of `shared_costs`."""
    common, apart = _common_and_own(shape, facts, requests, variants, budget)
    return sum(apart.values(), common)


def shared_costs(
    shape: ModelShape,
    facts: ModelFacts,
    requests: Sequence[Request],
    variants: Sequence[Variant],
    budget: int | DecodeLimits | None,
) -> dict[str, Cost]:
    """Cost of `requests` under each of `variants`, by its name, when they run together.

    The clean model runs each chunk once, of which all variants take an equal share. A variant resumes before its first
    changed layer, whose attention result it takes over, and a layer that is skipped as a whole costs nothing. Decoding
    is an upper bound: every row takes all its new tokens and runs every layer that its variant does not skip, as though
    no two variants wrote the same text.
    Variants with hooks of the user's own or cut attention edges run as the hooked executor runs them.
    """
    common, apart = _common_and_own(shape, facts, requests, variants, budget)
    forked = [v.name for v in variants if not v.needs_hooks]
    return {name: cost + common * (1 / len(forked)) if name in forked else cost for name, cost in apart.items()}


def _common_and_own(
    shape: ModelShape,
    facts: ModelFacts,
    requests: Sequence[Request],
    variants: Sequence[Variant],
    budget: int | DecodeLimits | None,
) -> tuple[Cost, dict[str, Cost]]:
    """What all forked variants have in common, and what each one adds, by its name."""
    limits = forked_limits(budget)
    hooked = [v for v in variants if v.needs_hooks]
    forked = [v for v in variants if not v.needs_hooks]
    alone = unshared_cost(shape, requests, 1, budget) if hooked else Cost()
    common, apart = Cost(), {v.name: alone if v.needs_hooks else Cost() for v in variants}
    if not forked:
        return common, apart
    scoring = likelihood_chunks(requests, forked, limits.tokens)
    for chunk in (*scoring, *decode_chunks(requests, forked, facts, limits)):
        clean, costs = _forked(shape, chunk)
        # All running rows take a step together, which reads the weights once.
        common += replace(clean, passes=float(chunk.steps))
        for variant, *parts in zip(chunk.variants, costs, _decoded(shape, chunk), strict=True):
            apart[variant.name] += sum(parts, Cost())
    return common, apart


def _forked(shape: ModelShape, chunk: Chunk) -> tuple[Cost, list[Cost]]:
    """The clean model once, and each variant from its fork on."""
    n_layers = shape.n_layers
    last = max(first_layer(v, n_layers) for v in chunk.variants)
    # Clean layers run as far as a later fork needs them; decoding needs the last fork's keys and values too.
    clean_layers = min(last + bool(chunk.rows), n_layers)
    whole = [_layer(shape, chunk, layer, False) for layer in range(n_layers)]
    # Of the layers from each one on.
    rest = [*accumulate(reversed(whole), initial=unembedding_cost(shape, chunk.scored))][::-1]
    costs = []
    for variant in chunk.variants:
        first, skipped = first_layer(variant, n_layers), _skipped(variant)
        cost = rest[first]
        for layer in skipped:
            cost += whole[layer] * -1
        if first < clean_layers and first not in skipped:
            cost += _layer(shape, chunk, first, True) + whole[first] * -1
        costs.append(cost)
    return sum(whole[:clean_layers], Cost()), costs


def _layer(shape: ModelShape, chunk: Chunk, layer: int, taken_over: bool) -> Cost:
    """One layer over the chunk; the last one only where its result is needed, if these are less than half."""
    if layer == shape.n_layers - 1 and 2 * chunk.scored < chunk.tokens:
        return last_block_cost(shape, chunk.tokens, chunk.scored, chunk.last_pairs, taken_over=taken_over)
    return blocks_cost(shape, chunk.tokens, 0 if taken_over else chunk.pairs, layer, layer + 1)


def _skipped(variant: Variant) -> set[int]:
    """Layers that need not run, since their whole contribution is replaced."""
    return {a.component.layer for a in variant.ablations if a.replaces_block}


def _decoded(shape: ModelShape, chunk: Chunk) -> list[Cost]:
    """The decode steps of each variant, without their passes over the weights."""
    positions = sum(steps for _, steps in chunk.rows)
    pairs = sum(steps * length + steps * (steps + 1) / 2 for length, steps in chunk.rows)
    layers = [blocks_cost(shape, positions, pairs, layer, layer + 1) for layer in range(shape.n_layers)]
    whole = sum(layers, unembedding_cost(shape, positions))
    costs = []
    for variant in chunk.variants:
        skipped = _skipped(variant)
        cost = whole
        for layer in skipped:
            cost += layers[layer] * -1
        cached = chunk.kv_read * (shape.n_layers - len(skipped)) * shape.cached_per_token
        costs.append(replace(cost, decode_flops=cost.flops, cached=cached))
    return costs
