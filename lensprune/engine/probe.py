"""Whether the fast path gives the hooked executor's numbers on this very model, clean and ablated.

Families differ in what their attention modules pass on, and in what stands between a part's result and the residual
stream: a norm or a gate in the wrong place changes ablated numbers only. So a short text runs both ways under one
ablation of every kind of part, in every way, at a layer in the middle; by log-likelihood and by a decode step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary

import torch

from lensprune.ablation.components import MLP, Attention, Component, Head, KVGroup, Layer, heads_of
from lensprune.ablation.reference import ReferenceActivations, collect_reference, replacement
from lensprune.ablation.variants import CLEAN, Ablation, AblationKind, Variant
from lensprune.engine.decoding import GroupDecoder
from lensprune.engine.fork import fork_variants
from lensprune.engine.hooked import HookedExecutor
from lensprune.engine.layers import LayerStack, UnsupportedByFastPath, errors_as_unsupported
from lensprune.engine.rope import RopeSides
from lensprune.engine.tree import build_tree
from lensprune.engine.tree_scoring import TreeScorer
from lensprune.models.base import HookedModel, ModelFacts
from lensprune.protocols.requests import GenerateRequest, LoglikelihoodRequest, LoglikelihoodResponse

__all__ = ["PROBE_TOLERANCE", "checked_stack", "probe_variants"]

PROBE_TOLERANCE = {"float64": 1e-3, "float32": 1e-3, "float16": 0.02, "bfloat16": 0.08}
"""Nats a token, more where tokens are less likely than e⁻⁴. Measured on a model of 135 M parameters: rounding alone
gives 1e-6, 4e-3 and 0.03; queries that are a tenth too long give 0.1."""

_PASSED: WeakKeyDictionary[torch.nn.Module, tuple[str, ...]] = WeakKeyDictionary()
"""Models that passed, and the weights, dtype and device with which they did."""

WAYS: tuple[AblationKind, ...] = ("zero", "mean", "resample")


def checked_stack(model: HookedModel) -> LayerStack:
    """The layers of `model` for the fast path, after both ways gave the same numbers on a probe.

    Raises:
        UnsupportedByFastPath: the model can't run layer by layer, or its numbers differ from the hooked executor's.
    """
    stack, facts = LayerStack(model), model.facts
    probed = facts.weights_hash, facts.dtype, facts.device
    if _PASSED.get(model.module) != probed:
        _check(model, stack)
        _PASSED[model.module] = probed
    return stack


def probe_variants(facts: ModelFacts) -> list[Variant]:
    """The clean model, and each kind of part in each way: at layers in the middle, all in one variant if there is room.

    No edit hides another: different heads and the MLP of one layer, attention of the next, the whole of a third.
    """
    layer = max(0, facts.n_layers // 2 - 1)
    inner: list[Component] = [Head(layer, 0), MLP(layer)]
    if facts.n_key_value_heads > 1:
        inner.append(KVGroup(layer, facts.n_key_value_heads - 1))
    if facts.n_layers >= 3:
        sets: list[list[Component]] = [[*inner, Attention(layer + 1), Layer(layer + 2)]]
    else:
        sets = [inner, [Attention(layer)], [Layer(layer)]]
    variants = [CLEAN]
    for kind in WAYS:
        for parts in sets:
            ablations = tuple(Ablation(part, kind) for part in parts)
            variants.append(Variant(" + ".join(ablation.name for ablation in ablations), ablations))
    return variants


def _requests(facts: ModelFacts, longest: int) -> list[LoglikelihoodRequest]:
    # Words that come again are what small errors of attention show on; with many of them, rounding averages out.
    factors, most = ((2,), 8) if facts.dtype in ("float32", "float64") else ((2, 3, 5), 16)
    size = max(1, min(most, longest // 4))
    requests = []
    for factor in factors:
        words = _words(size, factor, facts)
        requests.append(LoglikelihoodRequest(words, (words * 3)[: max(1, longest - size)]))
    return requests


def _words(size: int, factor: int, facts: ModelFacts) -> tuple[int, ...]:
    return tuple((7919 * (i + 1) * factor + 13) % facts.d_vocab for i in range(size))


def _decoded(request: LoglikelihoodRequest, facts: ModelFacts) -> LoglikelihoodRequest:
    """The same text with its end to decode: one step, more in half precision, where rounding has to average out."""
    steps = 1 if facts.dtype in ("float32", "float64") else 12
    whole = request.context_ids + request.continuation_ids
    size = min(steps + 1, len(whole) - 1)
    return LoglikelihoodRequest(whole[:-size], whole[-size:])


def _check(model: HookedModel, stack: LayerStack) -> None:
    facts = model.facts
    requests, variants = _requests(facts, RopeSides(model).longest), probe_variants(facts)
    decoded = [_decoded(requests[0], facts)]
    reference = collect_reference(model, [_words(len(requests[0].input_ids), 7, facts)], variants)
    with errors_as_unsupported(facts), torch.inference_mode():
        fast = _whole_texts(model, stack, requests, variants, reference)
        steps = [_decode(model, stack, request, variants, reference) for request in decoded]
    slow = HookedExecutor(model).run([*requests, *decoded], variants, reference=reference)
    for number, (variant, answered) in enumerate(zip(variants, slow, strict=True)):
        found = [*fast[variant.name], *(scores[number] for scores in steps)]
        for mine, other in zip(found, answered.responses, strict=True):
            assert isinstance(other, LoglikelihoodResponse)
            room = PROBE_TOLERANCE[facts.dtype] * max(1.0, abs(other.logprob) / other.n_tokens / 4) * other.n_tokens
            if math.isfinite(other.logprob) and not abs(mine - other.logprob) <= room:
                raise UnsupportedByFastPath(
                    f"{facts.architecture}: layer by layer, a probe has log-probability {mine:.4f} under "
                    f"{variant.name}, by hooks {other.logprob:.4f}"
                )


def _whole_texts(
    model: HookedModel,
    stack: LayerStack,
    requests: Sequence[LoglikelihoodRequest],
    variants: Sequence[Variant],
    reference: ReferenceActivations,
) -> dict[str, list[float]]:
    """Log-probability of each request's continuation under each variant, through a prefix tree."""
    tree = build_tree([request.input_ids for request in requests])
    scorer = TreeScorer(tree, dict(enumerate(requests)))
    # All tokens: the last layer then runs as a whole, and the witness sees every row.
    wanted = torch.arange(len(tree), device=model.facts.device)
    scored, position_ids = scorer.positions.to(wanted.device), tree.position_ids(model.facts.device)[0]
    found: dict[str, list[float]] = {}
    witness = _Witness(model, stack, variants)
    try:
        for variant, hidden in fork_variants(stack, model.facts, tree, wanted, variants, reference):
            witness.check(variant, reference, position_ids)
            found[variant.name] = [r.logprob for r in scorer.score(stack, hidden[scored]).values()]
    finally:
        witness.leave()
    return found


def _decode(
    model: HookedModel,
    stack: LayerStack,
    request: LoglikelihoodRequest,
    variants: Sequence[Variant],
    reference: ReferenceActivations,
) -> list[float]:
    """Log-probability of the request's continuation under each variant, decoded token by token."""
    asked = GenerateRequest(request.context_ids, (), len(request.continuation_ids))
    return GroupDecoder(model, stack, variants, [asked], reference).forced(request.continuation_ids).tolist()


class _Witness:
    """Sees that attention's output projection receives exactly what a variant puts in the place of heads."""

    def __init__(self, model: HookedModel, stack: LayerStack, variants: Sequence[Variant]) -> None:
        self._facts = model.facts
        self._received: dict[int, torch.Tensor] = {}
        layers = {a.component.layer for v in variants for a in v.ablations if isinstance(a.component, (Head, KVGroup))}
        self._handles = [stack.projections[layer].register_forward_hook(self._look(layer)) for layer in layers]

    def _look(self, layer: int) -> Callable[..., None]:
        def look(module: torch.nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            self._received[layer] = args[0][0]

        return look

    def leave(self) -> None:
        for handle in self._handles:
            handle.remove()

    def check(self, variant: Variant, reference: ReferenceActivations, position_ids: torch.Tensor) -> None:
        """Compare what came last with what the head edits of `variant`, which ran last, set."""
        for ablation in variant.ablations:
            if not isinstance(ablation.component, (Head, KVGroup)):
                continue
            layer, heads = ablation.component.layer, heads_of(ablation.component, self._facts)
            z = self._received[layer].reshape(len(position_ids), self._facts.n_heads, -1)
            if not torch.equal(z[:, heads], replacement(ablation, reference, position_ids, z)[:, heads]):
                raise UnsupportedByFastPath(
                    f"{self._facts.architecture}: the output projection of layer {layer}'s attention does not receive "
                    f"what {ablation.name} sets"
                )
