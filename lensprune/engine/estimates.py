"""First-order estimates of the effect of removing each part, all from one forward and one backward pass."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from lensprune.ablation.hooks import BatchState, VariantHooks
from lensprune.ablation.reference import ReferenceActivations
from lensprune.ablation.variants import CLEAN, Variant
from lensprune.engine.activations import START, KeptActivations
from lensprune.engine.base import ProgressCallback
from lensprune.engine.batching import batches_by_length, pad_left
from lensprune.engine.gradients import gradient_rule
from lensprune.engine.layers import UnsupportedByFastPath, errors_as_unsupported
from lensprune.engine.probe import PROBE_TOLERANCE
from lensprune.engine.rope import LongRopeBuckets
from lensprune.engine.scoring import pad_token_id
from lensprune.engine.tree import PrefixTree, build_tree, common_prefix
from lensprune.engine.tree_scoring import Scored, scored_positions
from lensprune.errors import UserError
from lensprune.models.base import HookedModel, HookFunction
from lensprune.models.positions import row_index_floor
from lensprune.precision import doubled, widened
from lensprune.protocols.requests import LoglikelihoodRequest

__all__ = ["Slope", "estimate_logprobs", "estimate_measure"]

ROW_TOKENS = 1024
"""Maximum tokens in a row shared by several groups of requests; a group is never split."""

Slope = Callable[[int, Float[np.ndarray, " request"]], tuple[float, Float[np.ndarray, " request"]]]
"""Maps a group's index and its requests' clean log-probabilities to the group's measure and the measure's derivative
with respect to each log-probability."""


def estimate_logprobs(
    model: HookedModel,
    requests: Sequence[LoglikelihoodRequest],
    variants: Sequence[Variant],
    *,
    rule: str = "plain",
    reference: ReferenceActivations | None = None,
    max_tokens: int = 256,
    progress: ProgressCallback | None = None,
) -> tuple[Float[torch.Tensor, " request"], Float[torch.Tensor, "variant request"]]:
    """Summed log-probability (nats) of each continuation in the clean model, and its estimated change in each variant.

    The change is (ablated − clean activation) · ∂log p/∂activation, summed over positions: attribution patching towards
    the ablated value (Nanda 2023; Syed et al. 2023, arXiv:2310.10348). One backward pass serves all variants, requests
    and tokens. With rule ``plain`` it is exact where the model is linear between the two activations. A layer's
    activation is what the block adds to the residual stream.

    Args:
        variants: each changes one part, with any ablation.
        rule: a name in `lensprune.engine.gradient_rules`.
        max_tokens: rows × length of a batch.
        progress: called with the number of requests done.

    Raises:
        UserError: a variant that does not change exactly one part, or a rule that the model does not support.
    """
    estimates = _Estimates(model, variants, reference)
    clean = torch.zeros(len(requests), dtype=torch.float64)
    estimated = torch.zeros(len(variants), len(requests), dtype=torch.float64)
    rope_buckets = LongRopeBuckets(model)
    lengths = [len(request.input_ids) for request in requests]
    with gradient_rule(model, rule):
        for batch in batches_by_length(lengths, max_tokens, [rope_buckets.of(request) for request in requests]):
            rows = _padded(model, [requests[i] for i in batch])
            of_batch = estimates.of(rows, lambda logprobs: np.ones(len(logprobs)))
            assert of_batch is not None
            clean[batch], estimated[:, batch] = of_batch
            if progress is not None:
                progress(len(batch))
    return clean, estimated


def estimate_measure(
    model: HookedModel,
    groups: Sequence[Sequence[LoglikelihoodRequest]],
    slope: Slope,
    variants: Sequence[Variant],
    *,
    rule: str = "plain",
    given: Variant = CLEAN,
    reference: ReferenceActivations | None = None,
    progress: ProgressCallback | None = None,
) -> tuple[Float[np.ndarray, " group"], Float[np.ndarray, " variant"]]:
    """The measure that `slope` computes for each group of requests, and its estimated change in each variant, summed
    over the groups where it is finite: as `estimate_logprobs`, times the derivative with respect to each
    log-probability.

    Tokens that requests share run once, forward and backward: they are laid out as one row in which each token sees
    those before it in its own text. If a model can't run such rows, a warning says so and each request gets a row.

    Args:
        groups: such as the options of one item.
        slope: called once per group. Groups whose value or derivative is not finite are left out of the sum.
        given: the starting point that `variants` change further: the clean model, or one without some part.

    Raises:
        UserError: as `estimate_logprobs`.
    """
    estimates = _Estimates(model, variants, reference, given)
    values = np.full(len(groups), np.nan)
    total = np.zeros(len(variants))
    packs = _shares_rows(model, max((len(r.input_ids) for group in groups for r in group), default=0))
    rope_buckets = LongRopeBuckets(model)
    with gradient_rule(model, rule):
        for chunk in _chunks(groups, ROW_TOKENS if packs else 0, rope_buckets):
            left = list(chunk)
            while left:
                requests = [request for i in left for request in groups[i]]
                rows = _packed(model, requests) if packs else _padded(model, requests)
                sizes = np.cumsum([len(groups[i]) for i in left])[:-1]

                def weights(
                    logprobs: np.ndarray, left: list[int] = left, sizes: np.ndarray = sizes
                ) -> np.ndarray | None:
                    """The derivatives, or ``None`` if some groups turned out to have none and were dropped from
                    `left`."""
                    slopes = []
                    for i, of_request in zip(list(left), np.split(logprobs, sizes), strict=True):
                        values[i], derivative = slope(i, of_request)
                        if not (
                            np.isfinite(of_request).all() and np.isfinite(values[i]) and np.isfinite(derivative).all()
                        ):
                            values[i] = np.nan
                            left.remove(i)
                        slopes.append(derivative)
                    # A value that is not finite would spread to every request that shares its tokens.
                    return np.concatenate(slopes) if len(slopes) == len(left) else None

                estimated = estimates.of(rows, weights)
                if estimated is not None:
                    total += estimated[1].sum(1).numpy()
                    break
            if progress is not None:
                progress(sum(len(groups[i]) for i in chunk))
    return values, total


@dataclass(frozen=True)
class _Rows:
    """Requests laid out as the rows of one forward pass. `scored`: the positions that predict them. With one row, only
    these are unembedded; otherwise the last `kept` positions of each row."""

    input_ids: Int[torch.Tensor, "row pos"]
    attention_mask: torch.Tensor
    position_ids: Int[torch.Tensor, "row pos"]
    scored: Scored
    kept: int | None


def _padded(model: HookedModel, requests: Sequence[LoglikelihoodRequest]) -> _Rows:
    """One left-padded row per request."""
    device = model.facts.device
    padded = pad_left([request.input_ids for request in requests], pad_token_id(model), device)
    kept = max(len(request.continuation_ids) for request in requests)
    sizes = [len(request.continuation_ids) for request in requests]
    rows = [row * kept + place for row, size in enumerate(sizes) for place in range(kept - size, kept)]
    targets = [token for request in requests for token in request.continuation_ids]
    scored = Scored(torch.arange(len(requests) * kept), torch.tensor(rows), torch.tensor(targets), sizes)
    return _Rows(padded.input_ids, padded.attention_mask, padded.position_ids, scored.to(device), kept)


def _packed(model: HookedModel, requests: Sequence[LoglikelihoodRequest]) -> _Rows:
    """One row for all requests: their prefix tree, masked so that each token sees those before it in its text."""
    device = model.facts.device
    # A node costs nothing here, so one shared token is enough to make one.
    tree = build_tree([request.input_ids for request in requests], min_saving=1)
    dtype: torch.dtype = getattr(torch, model.facts.dtype)
    mask = torch.zeros(len(tree), len(tree), dtype=dtype).masked_fill(~_sees(tree), torch.finfo(dtype).min)
    scored = scored_positions(tree, requests).to(device)
    return _Rows(tree.input_ids(device), mask[None, None].to(device), tree.position_ids(device), scored, None)


def _sees(tree: PrefixTree) -> torch.Tensor:
    """[query, key]: whether the key's token is the query's own or comes before it in the same text."""
    seen = torch.zeros(len(tree), len(tree), dtype=torch.bool)
    for node in tree.nodes:
        span = slice(node.start, node.end)
        seen[span, span] = torch.ones(node.length, node.length, dtype=torch.bool).tril()
        seen[node.end : node.subtree_end, span] = True
    return seen


def _chunks(
    groups: Sequence[Sequence[LoglikelihoodRequest]], max_tokens: int, rope_buckets: LongRopeBuckets
) -> Iterator[list[int]]:
    """Indices of groups that run together: those with similar texts, whose tree has about `max_tokens` tokens."""

    def key(i: int) -> tuple[str, tuple[int, ...]]:
        return str(sorted({str(rope_buckets.of(request)) for request in groups[i]})), groups[i][0].input_ids

    chunk: list[int] = []
    size = 0
    for i in sorted((i for i, group in enumerate(groups) if group), key=key):
        rows = sorted({request.input_ids for request in groups[i]})
        before = [groups[chunk[-1]][0].input_ids, *rows] if chunk else [(), *rows]
        extra = sum(len(row) - common_prefix(last, row) for last, row in zip(before, rows, strict=False))
        if chunk and (size + extra > max_tokens or key(chunk[-1])[0] != key(i)[0]):
            yield chunk
            chunk, size = [], 0
        chunk.append(i)
        size += extra
    if chunk:
        yield chunk


def _shares_rows(model: HookedModel, longest: int) -> bool:
    """Whether the model runs prefix trees as one row (see `estimate_measure`); warns where it doesn't."""
    reason = _why_not(model, longest)
    if reason is not None:
        warnings.warn(f"estimates of this model take one row per request: {reason}", stacklevel=3)
    return reason is None


def _why_not(model: HookedModel, longest: int) -> str | None:
    config: Any = getattr(getattr(model.module, "original_model", None), "config", None)
    if config is None:
        return "its attention does not accept a mask per token"
    text = config.get_text_config()
    if row_index_floor(config) is not None:
        return "it scales queries by their index in the row"
    for name in ("sliding_window", "attention_chunk_size"):
        window = getattr(text, name, None)
        if isinstance(window, int) and window < longest:
            return f"texts of {longest} tokens are longer than its {name.replace('_', ' ')} of {window}"
    start = tuple((7919 * i + 13) % model.facts.d_vocab for i in range(10))
    requests = [LoglikelihoodRequest(start[:size], (start[-size], start[size - 1])) for size in (8, 9, 5, 8)]
    try:
        with errors_as_unsupported(model.facts), torch.no_grad():
            packed, padded = (_logprobs(model, rows(model, requests)) for rows in (_packed, _padded))
    except UnsupportedByFastPath as reason:
        return str(reason)
    error = float((packed - padded).abs().max())
    if not error <= PROBE_TOLERANCE[model.facts.dtype] * max(1.0, float(padded.abs().max()) / 4):
        return f"laid out as one row, a probe's log-probabilities are off by {error:.2g} nats"
    return None


def _logprobs(model: HookedModel, rows: _Rows) -> Float[torch.Tensor, " request"]:
    """Summed log-probability of every request, in the graph."""
    with _unembedding_only(model, None if rows.kept is not None else rows.scored.positions):
        logits = model.forward(
            rows.input_ids, rows.attention_mask, rows.position_ids, logits_to_keep=rows.kept or 0
        ).flatten(0, 1)
    logprobs = widened(logits).log_softmax(-1)[rows.scored.rows, rows.scored.targets]
    return torch.stack([of_row.sum() for of_row in logprobs.split(rows.scored.sizes)])


@contextmanager
def _unembedding_only(model: HookedModel, positions: Int[torch.Tensor, " position"] | None) -> Iterator[None]:
    """Unembed only these positions of a row; ``None``: as many as the call requests."""
    if positions is None:
        yield
        return

    def select(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return args[0][:, positions], *args[1:]

    unembed: Any = model.module.unembed
    handle = unembed.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


class _Estimates:
    """Variants that change one part each, and the hook points at which they do."""

    def __init__(
        self,
        model: HookedModel,
        variants: Sequence[Variant],
        reference: ReferenceActivations | None,
        given: Variant = CLEAN,
    ) -> None:
        self._model = model
        self._state = BatchState()
        self._given = VariantHooks(model, given, self._state, reference).named
        self._changes: dict[str, list[tuple[int, HookFunction]]] = defaultdict(list)
        self._reads: dict[int, list[tuple[str, HookFunction]]] = {}
        self._selected: list[list[int] | None] = []
        for index, variant in enumerate(variants):
            if variant.hooks or len(variant.ablations) != 1:
                raise UserError(f"{variant.name} does not remove exactly one part: only such variants can be estimated")
            if variant.at or variant.needs_hooks:
                what = "a part at some positions" if variant.at else "attention edges"
                raise UserError(f"{variant.name} removes {what}: only whole parts can be estimated")
            # A layer's removal reads the residual stream before it, and writes the one after it.
            (site, write), *reads = VariantHooks(model, variant, self._state, reference).named
            self._changes[site].append((index, write))
            self._reads[index] = list(reads)
            self._selected.append(variant.ablations[0].component.selected(model.facts))

    def of(
        self, rows: _Rows, weights: Callable[[np.ndarray], np.ndarray | None]
    ) -> tuple[Float[torch.Tensor, " request"], Float[torch.Tensor, "variant row"]] | None:
        """Log-probabilities, and the estimated change of their `weights`-weighted sum in each variant, by row.

        `weights` is called with the log-probabilities; if it returns ``None``, so does this.
        """
        self._state.position_ids = rows.position_ids
        activations = KeptActivations()
        read = {name for reads in self._reads.values() for name, _ in reads}
        names = dict.fromkeys([START, *self._changes, *sorted(read)])
        hooks = [*self._given, *((name, activations.keep(name)) for name in names)]
        with torch.enable_grad(), self._model.hooks(hooks):
            logprobs = _logprobs(self._model, rows)
            clean = logprobs.detach().cpu().double()
            weighted = weights(clean.numpy())
            if weighted is None:
                return None
            factors = torch.as_tensor(weighted, dtype=logprobs.dtype, device=logprobs.device)
            kept = activations.kept
            gradients = torch.autograd.grad(
                (logprobs * factors).sum(), [kept[site] for site in self._changes], allow_unused=True
            )
        products = torch.zeros(len(self._selected), len(rows.input_ids), dtype=torch.float64)
        with torch.inference_mode():
            for (site, here), gradient in zip(self._changes.items(), gradients, strict=True):
                if gradient is None:
                    raise UserError(
                        f"{self._model.facts.architecture} has no gradient at {site} under this transformer-lens: "
                        "measure instead of estimating"
                    )
                before = kept[site].detach()
                for index, write in here:
                    for name, look in self._reads[index]:
                        look(kept[name].detach(), None)
                    after = write(before, None)
                    assert after is not None
                    chosen = self._selected[index]
                    part = slice(None) if chosen is None else chosen
                    # Masked positions have no gradient, so padding adds nothing.
                    product = (after - before)[:, :, part] * gradient[:, :, part]
                    products[index] = doubled(product).flatten(1).sum(1).cpu()
        return clean, products
