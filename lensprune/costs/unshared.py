"""The work of the hooked executor: every variant runs every row, from the first token to the last."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from lensprune.costs.cost import Cost, blocks_cost, unembedding_cost
from lensprune.costs.shape import ModelShape
from lensprune.engine.batching import batches_by_length
from lensprune.engine.hooked import HookedExecutor
from lensprune.engine.limits import DecodeLimits
from lensprune.protocols.requests import GenerateRequest, LoglikelihoodRequest, Request

__all__ = ["Batch", "batch_budget", "hooked_batches", "unshared_cost"]


@dataclass(frozen=True)
class Batch:
    """One padded batch: `rows` × `width` positions, of which `tokens` are real; `kept` per row are unembedded.

    At most `steps` single positions per row are decoded after it.
    """

    rows: int
    width: int
    tokens: int
    kept: int
    steps: int = 0


def batch_budget(executor: type, limit: int | DecodeLimits | None) -> int:
    """Tokens of a batch: as requested, or the executor's default."""
    if isinstance(limit, DecodeLimits):
        return limit.tokens
    return limit if limit is not None else int(inspect.signature(executor).parameters["max_tokens"].default)


def hooked_batches(requests: Sequence[Request], budget: int) -> Iterator[Batch]:
    """The batches in which the hooked executor runs `requests`, repeated for each variant."""
    kept: dict[tuple[int, ...], int] = {}
    generated: list[GenerateRequest] = []
    for request in requests:
        if isinstance(request, LoglikelihoodRequest):
            row = request.input_ids
            kept[row] = max(kept.get(row, 0), len(request.continuation_ids))
        else:
            generated.append(request)
    rows = list(kept)
    for batch in batches_by_length([len(row) for row in rows], budget):
        batch_rows = [rows[i] for i in batch]
        yield Batch(
            len(batch_rows), max(map(len, batch_rows)), sum(map(len, batch_rows)), max(kept[row] for row in batch_rows)
        )
    lengths = [len(r.context_ids) + r.max_new_tokens for r in generated]
    for batch in batches_by_length(lengths, budget):
        generations = [generated[i] for i in batch]
        contexts = [len(r.context_ids) for r in generations]
        yield Batch(len(generations), max(contexts), sum(contexts), 1, max(r.max_new_tokens for r in generations) - 1)


def unshared_cost(
    shape: ModelShape, requests: Sequence[Request], n_variants: int, budget: int | DecodeLimits | None
) -> Cost:
    """Cost of `requests` under `n_variants` variants; every generated row takes all its new tokens (an upper bound).

    Tokens are counted without padding, FLOPs with it: padded positions run like any others. A removed part is computed
    all the same and its result replaced.
    """
    total = Cost()
    for batch in hooked_batches(requests, batch_budget(HookedExecutor, budget)):
        prefill = blocks_cost(shape, batch.rows * batch.width, batch.rows * batch.width**2)
        total += replace(prefill, tokens=float(batch.tokens))
        total += unembedding_cost(shape, batch.rows * batch.kept)
        total += decode_cost(shape, batch.rows, batch.width, batch.steps)
    return total * n_variants


def decode_cost(shape: ModelShape, rows: float, width: float, steps: int) -> Cost:
    """`steps` single tokens per row, each seeing the `width` positions before the first and those decoded since."""
    pairs = steps * width + steps * (steps + 1) / 2
    cost = blocks_cost(shape, rows * steps, rows * pairs) + unembedding_cost(shape, rows * steps)
    cached = rows * pairs * shape.n_layers * shape.cached_per_token
    return replace(cost, decode_flops=cost.flops, passes=float(steps), cached=cached)
