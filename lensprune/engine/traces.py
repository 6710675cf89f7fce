"""Token-by-token traces of given texts under a variant, against the clean model: teacher-forced, in one pass."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float

from lensprune.ablation.hooks import BatchState, VariantHooks, with_hook_names
from lensprune.ablation.reference import ReferenceActivations, check_variants
from lensprune.ablation.variants import CLEAN, Variant
from lensprune.engine.base import ProgressCallback
from lensprune.engine.batching import pad_left
from lensprune.engine.fork import fork_variants
from lensprune.engine.hook_probe import warn_of_inert_hooks
from lensprune.engine.layers import LayerStack, UnsupportedByFastPath
from lensprune.engine.marks import Marks, marked
from lensprune.engine.probe import checked_stack
from lensprune.engine.registry import executor_info
from lensprune.engine.rope import LongRopeBuckets
from lensprune.engine.scoring import pad_token_id
from lensprune.engine.tree import build_tree
from lensprune.engine.tree_scoring import Scored, scored_positions
from lensprune.models.base import HookedModel
from lensprune.precision import widened
from lensprune.protocols.requests import LoglikelihoodRequest

__all__ = ["MAX_POSITIONS", "TokenTrace", "trace_tokens"]

MAX_POSITIONS = 512
"""Scored tokens per chunk: the clean model's distribution, one row of the vocabulary, is held for each."""
_MAX_TOKENS = 8192


@dataclass(frozen=True)
class TokenTrace:
    """One text's scored tokens under one variant, in nats; NaN where a logit was not finite.

    `logprob`: of the given token; `regret`: log-probability of the most likely token minus that of the given one, 0
    where greedy decoding would choose it; `kl`: KL divergence of the variant's distribution from the clean model's,
    KL(clean ‖ variant).
    """

    logprob: Float[np.ndarray, " tok"]
    regret: Float[np.ndarray, " tok"]
    kl: Float[np.ndarray, " tok"]

    @property
    def agrees(self) -> Bool[np.ndarray, " tok"]:
        """Whether greedy decoding chooses each token, given those before it."""
        return self.regret == 0


def trace_tokens(
    model: HookedModel,
    requests: Sequence[LoglikelihoodRequest],
    variants: Sequence[Variant],
    *,
    reference: ReferenceActivations | None = None,
    executor: str = "forked",
    most_positions: int = MAX_POSITIONS,
    progress: ProgressCallback | None = None,
) -> list[list[TokenTrace]]:
    """Trace each request's continuation under each variant.

    Args:
        executor: ``forked`` shares prefixes and the layers below a variant's first change; ``hooked`` is the reference.
            Variants with custom hooks or cut attention edges, and models that ``forked`` can't run, take the ``hooked``
            path.
        most_positions: most scored tokens held at once (at least one request's).
        progress: called with the number of finished (variant, request) pairs.

    Raises:
        UserError: an unknown executor, a name used twice, or a variant that needs a reference and has none.
        HookNeverFired: a hook of a variant did not fire.
    """
    shares_work = executor_info(executor).shares_work
    check_variants(variants, model.facts, reference)
    variants = [with_hook_names(model, variant) for variant in variants]
    for variant in variants if requests else ():
        warn_of_inert_hooks(model, variant, requests, reference)
    stack = _layer_stack(model) if shares_work else None
    traces: dict[str, dict[int, TokenTrace]] = {variant.name: {} for variant in variants}
    rope_buckets, marks = LongRopeBuckets(model), Marks(model, variants)
    for chunk in _chunks(requests, most_positions, [rope_buckets.of_length(len(r.input_ids)) for r in requests]):
        for variant, of_chunk in _traced(model, stack, [requests[i] for i in chunk], variants, marks, reference):
            traces[variant.name].update(zip(chunk, of_chunk, strict=True))
            if progress is not None:
                progress(len(chunk))
    return [[traces[variant.name][i] for i in range(len(requests))] for variant in variants]


def _layer_stack(model: HookedModel) -> LayerStack | None:
    """The model's layer stack; ``None``, with a warning, for a model that can't be run layer by layer."""
    try:
        return checked_stack(model)
    except UnsupportedByFastPath as reason:
        warnings.warn(f"the traces of this model take the hooked path: {reason}", stacklevel=3)
        return None


def _traced(
    model: HookedModel,
    stack: LayerStack | None,
    requests: Sequence[LoglikelihoodRequest],
    variants: Sequence[Variant],
    marks: Marks,
    reference: ReferenceActivations | None,
) -> Iterator[tuple[Variant, list[TokenTrace]]]:
    """Each variant's traces of requests that run in one call, by the fast path where possible."""
    fast = [variant for variant in variants if stack is not None and not variant.needs_hooks]
    slow = [variant for variant in variants if stack is None or variant.needs_hooks]
    if stack is not None and fast:
        yield from _forked(model, stack, requests, fast, marks, reference)
    if slow:
        yield from zip(slow, _hooked(model, requests, slow, marks, reference), strict=True)


def _chunks(
    requests: Sequence[LoglikelihoodRequest], most_positions: int, rope_buckets: Sequence[int]
) -> Iterator[list[int]]:
    """Indices of requests that run in one call; the requests of a call have the same rope bucket."""
    # Sorted by context, neighbours share prefixes.
    order = sorted(range(len(requests)), key=lambda i: (rope_buckets[i], requests[i].context_ids))
    chunk: list[int] = []
    positions = tokens = 0
    for i in order:
        size = len(requests[i].continuation_ids)
        length = len(requests[i].context_ids) + size
        full = positions + size > most_positions or tokens + length > _MAX_TOKENS
        if chunk and (full or rope_buckets[i] != rope_buckets[chunk[0]]):
            yield chunk
            chunk, positions, tokens = [], 0, 0
        chunk.append(i)
        positions += size
        tokens += length
    if chunk:
        yield chunk


class _Measure:
    """Distances from the clean model's distributions at the scored tokens of some requests, one after another.

    Requests may share positions: what does not depend on the scored token is computed once per position.
    """

    def __init__(self, clean: Float[torch.Tensor, "position d_vocab"], scored: Scored) -> None:
        logprobs = widened(clean).log_softmax(-1)
        self._clean = logprobs.exp()
        # p log p is 0 where p is.
        self._negentropy = torch.xlogy(self._clean, self._clean).sum(-1)
        self._scored = scored

    def traces(self, logits: Float[torch.Tensor, "position d_vocab"]) -> list[TokenTrace]:
        rows, targets = self._scored.rows, self._scored.targets
        # Ties must break as they do in greedy decoding, so in the logits' own precision.
        best, chosen = logits.max(-1)
        wide = widened(logits)
        # A sum is finite only if all its terms are; there are too few terms to overflow it.
        finite = torch.isfinite(wide.sum(-1))
        # Differences from the best logit, which keep rounding errors small.
        shifted = wide - widened(best)[:, None]
        norm = shifted.logsumexp(-1)
        # KL = Σ p log p − Σ p log q, and log q = shifted − norm. Rounding can make a tiny divergence negative.
        kl = (self._negentropy - torch.linalg.vecdot(self._clean, shifted) + norm).clamp(min=0)
        behind = shifted[rows, targets]
        regret = torch.where(chosen[rows] == targets, 0.0, (-behind).clamp(min=torch.finfo(torch.float32).tiny))
        columns = [
            torch.where(finite[rows], c, torch.nan).cpu().double().numpy()
            for c in (behind - norm[rows], regret, kl[rows])
        ]
        pieces = [np.split(column, np.cumsum(self._scored.sizes)[:-1]) for column in columns]
        return [TokenTrace(*values) for values in zip(*pieces, strict=True)]


def _forked(
    model: HookedModel,
    stack: LayerStack,
    requests: Sequence[LoglikelihoodRequest],
    variants: Sequence[Variant],
    marks: Marks,
    reference: ReferenceActivations | None,
) -> Iterator[tuple[Variant, list[TokenTrace]]]:
    requests = [marked(r, marks.of(r)) for r in requests]
    tree = build_tree([r.input_ids for r in requests])
    scored = scored_positions(tree, requests).to(model.facts.device)
    wanted = scored.positions
    with torch.inference_mode():
        [(_, hidden)] = fork_variants(stack, model.facts, tree, wanted, [CLEAN], None)
        measure = _Measure(stack.logits(hidden), scored)
        runs = fork_variants(stack, model.facts, tree, wanted, variants, reference, marks=marks)
        for variant, changed in runs:
            yield variant, measure.traces(stack.logits(changed))


def _hooked(
    model: HookedModel,
    requests: Sequence[LoglikelihoodRequest],
    variants: Sequence[Variant],
    marks: Marks,
    reference: ReferenceActivations | None,
) -> Iterator[list[TokenTrace]]:
    def scored(variant: Variant) -> Float[torch.Tensor, "scored d_vocab"]:
        # Custom hooks see one prompt at a time, without padding.
        return torch.cat(
            [together(variant, group) for group in ([[r] for r in requests] if variant.hooks else [requests])]
        )

    def together(variant: Variant, group: Sequence[LoglikelihoodRequest]) -> Float[torch.Tensor, "scored d_vocab"]:
        padded = pad_left([r.input_ids for r in group], pad_token_id(model), model.facts.device)
        kept = max(len(r.continuation_ids) for r in group)
        masks = marks.masks([marks.of(r) for r in group], padded.input_ids)
        state = BatchState(padded.position_ids, padded.input_ids, tuple(r.item for r in group), masks)
        hooks = VariantHooks(model, variant, state, reference)
        with torch.inference_mode(), model.hooks(hooks.named):
            logits = model.forward(padded.input_ids, padded.attention_mask, padded.position_ids, logits_to_keep=kept)
        hooks.check_fired()
        return torch.cat([row_logits[-len(r.continuation_ids) :] for row_logits, r in zip(logits, group, strict=True)])

    clean = scored(CLEAN)
    each = torch.arange(len(clean), device=clean.device)
    targets = torch.tensor([token for r in requests for token in r.continuation_ids], device=clean.device)
    measure = _Measure(clean, Scored(each, each, targets, [len(r.continuation_ids) for r in requests]))
    for variant in variants:
        yield measure.traces(scored(variant))
