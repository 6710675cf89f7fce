"""What a forward and a backward pass say of every head at once: first-order estimates of removing it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from jaxtyping import Float

from lensprune.ablation.components import Slot
from lensprune.ablation.hooks import BatchState, VariantHooks
from lensprune.ablation.reference import ReferenceActivations
from lensprune.ablation.variants import Variant
from lensprune.engine.activations import START, KeptActivations
from lensprune.engine.base import ProgressCallback
from lensprune.engine.batching import batches_by_length, pad_left
from lensprune.engine.rope import LongRopeBuckets
from lensprune.engine.scoring import pad_token_id
from lensprune.errors import UserError
from lensprune.models.base import HookedModel, HookFunction
from lensprune.precision import widened
from lensprune.protocols.requests import LoglikelihoodRequest

__all__ = ["estimate_logprobs"]


def estimate_logprobs(
    model: HookedModel,
    requests: Sequence[LoglikelihoodRequest],
    variants: Sequence[Variant],
    *,
    reference: ReferenceActivations | None = None,
    max_tokens: int = 256,
    progress: ProgressCallback | None = None,
) -> tuple[Float[torch.Tensor, " request"], Float[torch.Tensor, "variant request"]]:
    """Summed log-probability (nats) of each continuation in the clean model, and its estimated change in each variant.

    The change is (ablated z − clean z) · ∂log p/∂z, summed over positions: attribution patching towards the ablated
    value (Nanda 2023; Syed et al. 2023, arXiv:2310.10348). One backward pass serves all variants, requests and tokens.
    It is exact where the model is linear between the two activations.

    Args:
        variants: each changes one head, key/value group or other part of z, with any ablation.
        max_tokens: rows × length of a batch.
        progress: called with the number of requests done.

    Raises:
        UserError: a variant that changes anything else.
    """
    for variant in variants:
        slots = [ablation.component.part.slot for ablation in variant.ablations]
        if variant.hooks or slots != [Slot.HEADS]:
            raise UserError(
                f"{variant.name} is not the removal of one head or one key/value group: only those can be estimated"
            )
    state = BatchState()
    changes: dict[str, list[tuple[int, HookFunction]]] = defaultdict(list)
    for index, variant in enumerate(variants):
        [(site, function)] = VariantHooks(model, variant, state, reference).named
        changes[site].append((index, function))
    clean = torch.zeros(len(requests), dtype=torch.float64)
    estimated = torch.zeros(len(variants), len(requests), dtype=torch.float64)
    rope_buckets = LongRopeBuckets(model)
    lengths = [len(request.input_ids) for request in requests]
    for batch in batches_by_length(lengths, max_tokens, [rope_buckets.of(request) for request in requests]):
        batch_requests = [requests[i] for i in batch]
        padded = pad_left([r.input_ids for r in batch_requests], pad_token_id(model), model.facts.device)
        state.position_ids = padded.position_ids
        activations = KeptActivations()
        names = list(dict.fromkeys([START, *changes]))
        with torch.enable_grad(), model.hooks([(name, activations.keep(name)) for name in names]):
            logits = model.forward(
                padded.input_ids,
                padded.attention_mask,
                padded.position_ids,
                logits_to_keep=max(len(r.continuation_ids) for r in batch_requests),
            )
            logprobs = torch.stack([_logprob(row, r) for row, r in zip(logits, batch_requests, strict=True)])
            gradients = torch.autograd.grad(logprobs.sum(), [activations.kept[site] for site in changes])
        clean[batch] = logprobs.detach().double().cpu()
        with torch.inference_mode():
            for (site, here), gradient in zip(changes.items(), gradients, strict=True):
                before = activations.kept[site].detach()
                for index, function in here:
                    after = function(before, None)
                    assert after is not None
                    # Masked positions have no gradient, so padding adds nothing.
                    product = ((after - before) * gradient).double().flatten(1).sum(1)
                    estimated[index, batch] = product.cpu()
        if progress is not None:
            progress(len(batch))
    return clean, estimated


def _logprob(logits: Float[torch.Tensor, "kept d_vocab"], request: LoglikelihoodRequest) -> Float[torch.Tensor, ""]:
    targets = torch.tensor(request.continuation_ids, device=logits.device)
    logprobs = widened(logits[-len(targets) :]).log_softmax(-1)
    return logprobs.gather(1, targets[:, None]).sum()
