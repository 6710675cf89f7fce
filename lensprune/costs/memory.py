"""Peak memory: weights, and the largest set of activations that is alive at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lensprune.ablation.variants import Variant
from lensprune.costs.shape import ModelShape
from lensprune.costs.shared import Chunk, decode_chunks, forked_limits, likelihood_chunks
from lensprune.costs.unshared import Batch, batch_budget, hooked_batches
from lensprune.engine.hooked import HookedExecutor
from lensprune.engine.limits import DecodeLimits
from lensprune.engine.memory import UNEMBED_ROWS
from lensprune.models.base import ModelFacts
from lensprune.protocols.requests import Request

__all__ = ["Memory", "peak_memory"]

LIBRARIES = 650 * 10**6
"""Resident size of a process beside weights and activations: torch, transformers, TransformerLens and lensprune, and
the modules and hook points of a model. After loading smollm2-135m with torch 2.13 for the CPU, 560 to 800 MB were
measured: it depends on the machine, whose processor decides which kernels are loaded."""

_FLOAT32 = 4
_RESIDUAL_COPIES = 6
"""Embedded tokens, clean residual, a variant's residual before and after a layer, a normed copy, a branch's output."""
_QKV_COPIES = 2
"""Before and after the rotation."""
_SCORE_COPIES = 3
"""Scores, their softmax in float32, and its copy in the model's type."""
_LOGIT_COPIES = 2
"""The logits and what is computed from them (log-softmax, or the float32 copy)."""


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak; `process` is what the libraries take by themselves (0 on a GPU, which holds no code).

    `loading` is what loading takes beside the weights (`lensprune.models.loading_memory`), before anything is run.
    """

    weights: int
    activations: int
    cache: int
    logits: int
    process: int
    loading: int = 0

    @property
    def total(self) -> int:
        running = self.activations + self.cache + self.logits
        return self.process + self.weights + max(self.loading, running)


def peak_memory(
    shape: ModelShape,
    facts: ModelFacts,
    requests: Sequence[Sequence[Request]],
    variants: Sequence[Variant],
    *,
    shares_work: bool,
    bytes_a_number: int,
    budget: int | DecodeLimits | None,
    loading: int = 0,
) -> Memory:
    """The largest of the phases' needs: loading, and each batch or chunk.

    Args:
        requests: one list per (task, protocol); they run one after the other.
        shares_work: whether the executor runs as the forked one does, else as the hooked one.
        loading: what loading takes beside the weights, on the CPU.
    """
    worst = Memory(0, 0, 0, 0, 0)
    on_cpu = facts.device.startswith("cpu")
    hooked = [v for v in variants if v.needs_hooks or not shares_work]
    for of_condition in requests:
        phases: list[Memory] = []
        if hooked:
            size = batch_budget(HookedExecutor, budget)
            phases += [_batch(shape, batch, bytes_a_number) for batch in hooked_batches(of_condition, size)]
        if len(hooked) < len(variants):
            limits = forked_limits(budget)
            forked = [v for v in variants if v not in hooked]
            chunks = [
                *likelihood_chunks(of_condition, forked, limits.tokens),
                *decode_chunks(of_condition, forked, facts, limits),
            ]
            phases += [_chunk(shape, chunk, bytes_a_number, on_cpu) for chunk in chunks]
        worst = max([worst, *phases], key=lambda memory: memory.total)
    return Memory(
        weights=shape.parameters * bytes_a_number,
        activations=worst.activations,
        cache=worst.cache,
        logits=worst.logits,
        process=LIBRARIES if on_cpu else 0,
        loading=loading if on_cpu else 0,
    )


def _token_bytes(shape: ModelShape, bytes_a_number: int) -> int:
    """Activations of one position while its widest part runs."""
    qkv = (shape.n_heads + 2 * shape.n_key_value_heads) * shape.d_head * _QKV_COPIES
    # A gated MLP holds gate, up and their product; its matrices have 3 × d_ff columns of d_model.
    mlp = max(layer.mlp for layer in shape.layers) // shape.d_model
    return (_RESIDUAL_COPIES * shape.d_model + max(qkv, mlp)) * bytes_a_number


def _cache(shape: ModelShape, tokens: int, bytes_a_number: int) -> int:
    return 2 * shape.n_layers * shape.n_key_value_heads * shape.d_head * tokens * bytes_a_number


def _batch(shape: ModelShape, batch: Batch, bytes_a_number: int) -> Memory:
    scores = batch.rows * shape.n_heads * batch.width**2 * (_FLOAT32 + (_SCORE_COPIES - 1) * bytes_a_number)
    return Memory(
        weights=0,
        activations=batch.rows * batch.width * _token_bytes(shape, bytes_a_number) + scores,
        cache=_cache(shape, batch.rows * (batch.width + batch.steps), bytes_a_number) if batch.steps else 0,
        logits=batch.rows * batch.kept * shape.d_vocab * (bytes_a_number + (_LOGIT_COPIES - 1) * _FLOAT32),
        process=0,
    )


def _chunk(shape: ModelShape, chunk: Chunk, bytes_a_number: int, on_cpu: bool) -> Memory:
    # On the CPU scores stay inside a fused kernel.
    scores = 0 if on_cpu else chunk.widest * shape.n_heads * (_FLOAT32 + (_SCORE_COPIES - 1) * bytes_a_number)
    unembedded = min(max(chunk.scored, chunk.rows_at_once), UNEMBED_ROWS)
    return Memory(
        weights=0,
        activations=chunk.tokens * _token_bytes(shape, bytes_a_number) + scores,
        cache=chunk.kv_bytes,
        logits=unembedded * shape.d_vocab * (bytes_a_number + (_LOGIT_COPIES - 1) * _FLOAT32),
        process=0,
    )
