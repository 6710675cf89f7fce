"""Check that the fast path gives the hooked executor's numbers on a given model, clean and ablated.

Families differ in what their attention modules pass on, and in what lies between a part's result and the residual
stream: a norm or gate in the wrong place changes ablated numbers only. So a short text runs both ways under every
built-in ablation kind on every built-in part, at middle layers, by log-likelihood and by a decode step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from weakref import WeakKeyDictionary

import torch

from lensprune.ablation.collect import collect_reference
from lensprune.ablation.components import Component, Part, Slot, parts
from lensprune.ablation.kinds import AblationKind, ablation_kinds
from lensprune.ablation.reference import ReferenceActivations, replacement
from lensprune.ablation.variants import CLEAN, Ablation, Variant
from lensprune.engine.decoding import GroupDecoder
from lensprune.engine.fork import fork_variants
from lensprune.engine.hooked import HookedExecutor
from lensprune.engine.layers import LayerStack, UnsupportedByFastPath, errors_as_unsupported
from lensprune.engine.rope import LongRopeBuckets
from lensprune.engine.tree import build_tree
from lensprune.engine.tree_scoring import TreeScorer
from lensprune.models.base import HookedModel, ModelFacts
from lensprune.protocols.requests import GenerateRequest, LoglikelihoodRequest, LoglikelihoodResponse

__all__ = ["PROBE_TOLERANCE", "checked_stack", "probe_variants", "probed_kinds", "probed_parts"]

PROBE_TOLERANCE = {"float64": 1e-4, "float32": 1e-3, "float16": 0.02, "bfloat16": 0.08}
"""Tolerance in nats per token, larger where tokens are less likely than e⁻⁴. Measured on a model with 135 M parameters:
rounding alone gives 1e-6 in float64 and float32, 4e-3 and 0.03 in the half-precision types; queries 10% too long give
0.1. float64 is no better than float32, since transformers computes norms and softmaxes in float32 for any dtype."""

_PASSED: WeakKeyDictionary[torch.nn.Module, tuple[str, ...]] = WeakKeyDictionary()
"""Models that passed, with their weights, dtype and device at the time."""


def checked_stack(model: HookedModel) -> LayerStack:
    """The layers of `model` for the fast path, after checking on a probe that both executors give the same numbers.

    Raises:
        UnsupportedByFastPath: the model can't run layer by layer, or its numbers differ from the hooked executor's.
    """
    stack, facts = LayerStack(model), model.facts
    probed = facts.weights_hash, facts.dtype, facts.device
    if _PASSED.get(model.module) != probed:
        _check(model, stack)
        _PASSED[model.module] = probed
    return stack


def probed_parts() -> list[Part]:
    """The built-in parts, narrow ones first. A plug-in's part is a piece of an activation that these cover."""
    built_in = [part for part in parts() if _is_built_in(part.component)]
    return sorted(built_in, key=lambda part: list(Slot).index(part.slot), reverse=True)


def probed_kinds() -> list[AblationKind]:
    """The built-in ablation kinds."""
    return [kind for kind in ablation_kinds().values() if kind.value is None or _is_built_in(kind.value)]


def _is_built_in(defined: object) -> bool:
    return str(getattr(defined, "__module__", "")).partition(".")[0] == __name__.partition(".")[0]


def probe_variants(facts: ModelFacts) -> list[Variant]:
    """The clean model, and each of `probed_kinds` on each of `probed_parts`: at layers from the middle on, all in one
    variant if there is room.

    No edit hides another: different heads and the MLP of one layer, attention of the next, the whole of a third.
    """
    variants = [CLEAN]
    for kind in probed_kinds():
        for components in _together([part for part in probed_parts() if kind.allows(part)], facts):
            ablations = tuple(Ablation(component, kind.name) for component in components)
            variants.append(Variant(" + ".join(ablation.name for ablation in ablations), ablations))
    return variants


def _together(chosen: Sequence[Part], facts: ModelFacts) -> list[list[Component]]:
    """A component of each part, in the fewest sets that keep them from overlapping."""
    sets: list[list[Component]] = []
    for part in chosen:
        candidates = list(_candidates(part, facts))
        room = ((of_set, c) for of_set in sets for c in candidates if all(_apart(c, other, facts) for other in of_set))
        fitting = next(room, None)
        if fitting is None:
            sets.append([candidates[0]])
        else:
            of_set, component = fitting
            of_set.append(component)
    return sets


def _candidates(part: Part, facts: ModelFacts) -> Iterator[Component]:
    """The part's first and last component in each layer from the middle on."""
    for layer in range(max(0, facts.n_layers // 2 - 1), facts.n_layers):
        of_layer = part.each(facts, layer)
        yield from (of_layer[0], of_layer[-1])


def _apart(one: Component, other: Component, facts: ModelFacts) -> bool:
    """Whether neither component's ablation overwrites what the other's changes."""
    if one.layer != other.layer:
        return True
    slots = {one.part.slot, other.part.slot}
    if len(slots) == 1:
        first, second = one.selected(facts), other.selected(facts)
        return first is not None and second is not None and not set(first) & set(second)
    return Slot.CONTRIBUTION not in slots and slots != {Slot.ATTENTION, Slot.HEADS}


def _reference(model: HookedModel, prompt: Sequence[int], variants: Sequence[Variant]) -> ReferenceActivations:
    """Reference activations for the variants. Optimal constants are set to twice the mean: a search would take long,
    and its result is read like any other constant."""
    ablations = [ablation for variant in variants for ablation in variant.ablations]
    searched = [ablation for ablation in ablations if ablation.definition.reference == "optimal"]
    # The means at the sites, without a search.
    means = [Ablation(ablation.component, "mean") for ablation in searched]
    given = [ablation for ablation in ablations if ablation not in searched]
    plain = [Variant(f"{i}: {a.name}", (a,)) for i, a in enumerate([*given, *means])]
    reference = collect_reference(model, [prompt], plain)
    constants = {
        a.component.label: -2 * torch.stack([table[a.component.site] for table in (reference.first, reference.pooled)])
        for a in searched
    }
    return replace(reference, optimal=constants)


def _requests(facts: ModelFacts, longest: int) -> list[LoglikelihoodRequest]:
    # Small errors in attention show on repeated words; with many of them, rounding averages out.
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
    """The same text with its end left to decode: one step, or more in half precision to average out rounding."""
    steps = 1 if facts.dtype in ("float32", "float64") else 12
    whole = request.context_ids + request.continuation_ids
    size = min(steps + 1, len(whole) - 1)
    return LoglikelihoodRequest(whole[:-size], whole[-size:])


def _check(model: HookedModel, stack: LayerStack) -> None:
    facts = model.facts
    requests, variants = _requests(facts, LongRopeBuckets(model).longest), probe_variants(facts)
    decoded = [_decoded(requests[0], facts)]
    reference = _reference(model, _words(len(requests[0].input_ids), 7, facts), variants)
    with errors_as_unsupported(facts), torch.inference_mode():
        fast = _whole_texts(model, stack, requests, variants, reference)
        steps = [_decode(model, stack, request, variants, reference) for request in decoded]
    slow = HookedExecutor(model).run([*requests, *decoded], variants, reference=reference)
    for number, (variant, answered) in enumerate(zip(variants, slow, strict=True)):
        logprobs = [*fast[variant.name], *(scores[number] for scores in steps)]
        for mine, other in zip(logprobs, answered.responses, strict=True):
            assert isinstance(other, LoglikelihoodResponse)
            room = PROBE_TOLERANCE[facts.dtype] * max(1.0, abs(other.logprob) / other.n_tokens / 4) * other.n_tokens
            if math.isfinite(other.logprob) and not abs(mine - other.logprob) <= room:
                raise UnsupportedByFastPath(
                    f"{facts.architecture}: a probe's log-probability under {variant.name} is {mine:.4f} "
                    f"layer by layer and {other.logprob:.4f} by hooks"
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
    # All tokens: the last layer then runs as a whole, and the recorder sees every row.
    wanted = torch.arange(len(tree), device=model.facts.device)
    scored, position_ids = scorer.positions.to(wanted.device), tree.position_ids(model.facts.device)[0]
    logprobs: dict[str, list[float]] = {}
    recorder = ProjectionRecorder(model, stack, variants)
    try:
        for variant, hidden in fork_variants(stack, model.facts, tree, wanted, variants, reference):
            recorder.check(variant, reference, position_ids)
            logprobs[variant.name] = [r.logprob for r in scorer.score(stack, hidden[scored]).values()]
    finally:
        recorder.leave()
    return logprobs


def _decode(
    model: HookedModel,
    stack: LayerStack,
    request: LoglikelihoodRequest,
    variants: Sequence[Variant],
    reference: ReferenceActivations,
) -> list[float]:
    """Log-probability of the request's continuation under each variant, decoded token by token."""
    generation = GenerateRequest(request.context_ids, (), len(request.continuation_ids))
    return GroupDecoder(model, stack, variants, [generation], reference).forced(request.continuation_ids).tolist()


class ProjectionRecorder:
    """Checks that attention's output projection receives exactly what a variant substitutes for heads."""

    def __init__(self, model: HookedModel, stack: LayerStack, variants: Sequence[Variant]) -> None:
        self._facts = model.facts
        self._received: dict[int, torch.Tensor] = {}
        layers = {a.component.layer for v in variants for a in v.ablations if a.component.part.slot is Slot.HEADS}
        self._handles = [stack.projections[layer].register_forward_hook(self._look(layer)) for layer in layers]

    def _look(self, layer: int) -> Callable[..., None]:
        def look(module: torch.nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            self._received[layer] = args[0][0]

        return look

    def leave(self) -> None:
        for handle in self._handles:
            handle.remove()

    def check(self, variant: Variant, reference: ReferenceActivations, position_ids: torch.Tensor) -> None:
        """Compare the last recorded input with what the head edits of `variant`, which ran last, set."""
        for ablation in variant.ablations:
            component = ablation.component
            if component.part.slot is not Slot.HEADS:
                continue
            layer, heads = component.layer, component.selected(self._facts)
            z = self._received[layer].reshape(len(position_ids), self._facts.n_heads, -1)
            if not torch.equal(z[:, heads], replacement(ablation, reference, position_ids, z)[:, heads]):
                raise UnsupportedByFastPath(
                    f"{self._facts.architecture}: the output projection of layer {layer}'s attention does not receive "
                    f"what {ablation.name} sets"
                )
