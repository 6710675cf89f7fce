"""Check that the fast path gives the hooked executor's numbers on a given model, clean and ablated.

Families differ in what their attention modules pass on, and in what lies between a part's result and the residual
stream: a norm or gate in the wrong place changes ablated numbers only. So a short text runs both ways, its end token by
token, clean and under every built-in ablation kind on every built-in part. The ablations are combined, one per layer,
into as few variants as fit; by hooks, these are the rows of one batch. Where a variant differs, its ablations run one
by one to find which.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float

from lensprune.ablation.components import Part, Slot, parts
from lensprune.ablation.hooks import BatchState, VariantHooks
from lensprune.ablation.kinds import AblationKind, ablation_kinds
from lensprune.ablation.recorded import ActivationRecorder
from lensprune.ablation.reference import ReferenceActivations, replacement
from lensprune.ablation.variants import CLEAN, Ablation, Variant
from lensprune.engine.decoding import GroupDecoder
from lensprune.engine.layers import LayerStack, UnsupportedByFastPath, errors_as_unsupported
from lensprune.engine.rope import LongRopeBuckets
from lensprune.models.base import HookedModel, HookFunction, ModelFacts, NamedHook
from lensprune.precision import widened
from lensprune.protocols.requests import GenerateRequest

__all__ = ["PROBE_TOLERANCE", "checked_stack", "difference_of", "probe_variants", "probed_kinds", "probed_parts"]

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
        difference = difference_of(model, stack, probe_variants(facts))
        if difference is not None:
            raise UnsupportedByFastPath(f"{facts.architecture}: {difference}")
        _PASSED[model.module] = probed
    return stack


def probed_parts() -> list[Part]:
    """The built-in parts, narrow ones first. A plug-in's part is a piece of an activation that these cover."""
    built_in = [part for part in parts() if _is_built_in(part.component)]
    return sorted(built_in, key=lambda part: list(Slot).index(part.slot), reverse=True)


def probed_kinds() -> list[AblationKind]:
    """The built-in ablation kinds that the fast path runs."""
    kinds = [kind for kind in ablation_kinds().values() if not kind.cuts_edges]
    return [kind for kind in kinds if kind.value is None or _is_built_in(kind.value)]


def _is_built_in(defined: object) -> bool:
    return str(getattr(defined, "__module__", "")).partition(".")[0] == __name__.partition(".")[0]


def probe_variants(facts: ModelFacts) -> list[Variant]:
    """The clean model, and each of `probed_kinds` on each of `probed_parts`, in as few variants as there is room for.

    A variant changes a layer once, so that no edit hides another, and the faults of two can't add up to nothing before
    a later layer has read the first. The last layers are taken: what comes before them runs once for all.
    """
    pairs = [(part, kind) for kind in probed_kinds() for part in probed_parts() if kind.allows(part)]
    n_variants = -(-len(pairs) // max(1, facts.n_layers - 1))
    variants = [CLEAN]
    for number in range(n_variants):
        chosen = pairs[number::n_variants]
        first = facts.n_layers - len(chosen)
        ablations = tuple(
            Ablation(part.each(facts, layer)[-(layer % 2)], kind.name)
            for layer, (part, kind) in enumerate(chosen, first)
        )
        variants.append(Variant(" + ".join(ablation.name for ablation in ablations), ablations))
    return variants


def _is_precise(facts: ModelFacts) -> bool:
    return facts.dtype in ("float32", "float64")


def _text(facts: ModelFacts, longest: int) -> tuple[int, ...]:
    """Small errors in attention show on repeated words; in half precision, many words average rounding out."""
    factors, most = ((2,), 4) if _is_precise(facts) else ((2, 3, 5), 12)
    size = max(1, min(most, longest // 4 // len(factors)))
    words = [[(7919 * (i + 1) * factor + 13) % facts.d_vocab for i in range(size)] for factor in factors]
    return tuple(token for of_factor in words for token in of_factor * 4)[: max(2, longest)]


def difference_of(model: HookedModel, stack: LayerStack, variants: Sequence[Variant]) -> str | None:
    """Where the two ways differ under `variants`, the clean model first, by a single ablation if one is enough."""
    recorder = ActivationRecorder({a.component.site for v in variants for a in v.ablations}, model.facts.n_layers)
    text = _text(model.facts, LongRopeBuckets(model).longest)
    probe = _Probe(model, stack, text, _reference(recorder.values, variants))
    differing = probe.differing(variants, recorder.hooks())
    if differing is None:
        return None
    one_by_one = [Variant(ablation.name, (ablation,)) for ablation in differing[0].ablations]
    return ((probe.differing(one_by_one) if one_by_one else None) or differing)[1]


def _reference(recorded: Mapping[str, torch.Tensor], variants: Sequence[Variant]) -> ReferenceActivations:
    """What the variants' values are taken from: activations of the clean model at each site, [1, pos, …], as soon as
    they are `recorded`. For optimal constants twice the mean, since a search would take long and its result is read
    like any other constant."""
    sites = {a.component.site: a.component.site for v in variants for a in v.ablations}
    labels = {a.component.label: a.component.site for v in variants for a in v.ablations}

    def first(values: torch.Tensor) -> torch.Tensor:
        return values[0, 0]

    def pooled(values: torch.Tensor) -> torch.Tensor:
        return values[0, 1:].mean(0)

    return ReferenceActivations(
        first=_Derived(recorded, sites, first),
        pooled=_Derived(recorded, sites, pooled),
        # Another token's, and too few, so that positions wrap.
        donor=_Derived(recorded, sites, lambda values: values[0, 3:]),
        optimal=_Derived(recorded, labels, lambda values: -2 * torch.stack([first(values), pooled(values)])),
    )


class _Derived(Mapping[str, torch.Tensor]):
    """A table made of another, read when it is used."""

    def __init__(
        self,
        table: Mapping[str, torch.Tensor],
        keys: Mapping[str, str],
        derive: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        self._table, self._keys, self._derive = table, keys, derive

    def __getitem__(self, key: str) -> torch.Tensor:
        return self._derive(self._table[self._keys[key]])

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


@dataclass(frozen=True)
class _Probe:
    """What runs both ways."""

    model: HookedModel
    stack: LayerStack
    text: tuple[int, ...]
    reference: ReferenceActivations

    def differing(self, variants: Sequence[Variant], of_first: Sequence[NamedHook] = ()) -> tuple[Variant, str] | None:
        """The first of `variants` whose numbers differ, and how; `of_first` are further hooks of the first variant."""
        facts = self.model.facts
        n_decoded = min(2 if _is_precise(facts) else 13, len(self.text) - 1)
        # Of less than half of the prompt's tokens, which is when the last layer runs for these alone.
        n_prefilled = max(1, (len(self.text) - n_decoded - 1) // 2)
        slow = _by_hooks(self.model, self.text, variants, self.reference, of_first)[:, 1 - n_prefilled - n_decoded :]
        with errors_as_unsupported(facts), torch.inference_mode():
            fast = _layer_by_layer(
                self.model, self.stack, self.text, variants, self.reference, n_decoded, n_prefilled
            ).to(slow.device)
        if not _is_precise(facts):
            parts = [n_prefilled, n_decoded - 1]
            fast, slow = (torch.stack([s.mean(1) for s in scores.split(parts, 1)], 1) for scores in (fast, slow))
        room = PROBE_TOLERANCE[facts.dtype] * (slow.abs() / 4).clamp(min=1)
        off = (slow.isfinite() & ~((fast - slow).abs() <= room)).nonzero().tolist()
        if not off:
            return None
        row, place = off[0]
        mine, other, name = float(fast[row, place]), float(slow[row, place]), variants[row].name
        return variants[row], (
            f"a probe's log-probability under {name} is {mine:.4f} layer by layer and {other:.4f} by hooks"
        )


def _by_hooks(
    model: HookedModel,
    text: tuple[int, ...],
    variants: Sequence[Variant],
    reference: ReferenceActivations,
    of_first: Sequence[NamedHook],
) -> Float[torch.Tensor, "variant tok-1"]:
    """Log-probability of every token but the first under every variant, from one forward pass: each row has its
    own hooks."""
    ids = torch.tensor([text] * len(variants), device=model.facts.device)
    positions = torch.arange(ids.shape[1], device=ids.device).expand(len(ids), -1)
    named = [(name, _on_row(0, function)) for name, function in of_first]
    of_variants = []
    for row, variant in enumerate(variants):
        state = BatchState(positions[row : row + 1], ids[row : row + 1], (None,))
        of_variants.append(VariantHooks(model, variant, state, reference))
        named += [(name, _on_row(row, function)) for name, function in of_variants[-1].named]
    with torch.inference_mode(), model.hooks(named):
        logits = model.forward(ids, torch.ones_like(ids), positions)[:, :-1]
        scores = widened(logits).log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
    for hooks in of_variants:
        hooks.check_fired()
    return scores


def _on_row(row: int, function: HookFunction) -> HookFunction:
    def changed(activation: torch.Tensor, hook: Any) -> torch.Tensor | None:
        new = function(activation[row : row + 1], hook)
        if new is None:
            return None
        out = activation.clone()
        out[row] = new[0]
        return out

    return changed


def _layer_by_layer(
    model: HookedModel,
    stack: LayerStack,
    text: tuple[int, ...],
    variants: Sequence[Variant],
    reference: ReferenceActivations,
    n_decoded: int,
    n_prefilled: int,
) -> Float[torch.Tensor, "variant scored"]:
    """Log-probability of the text's last tokens under each variant: `n_prefilled` after a pass over what precedes the
    `n_decoded` last ones, and then step by step."""
    prompt, continuation = text[:-n_decoded], text[-n_decoded:]
    decoder = GroupDecoder(model, stack, variants, [GenerateRequest(prompt, (), n_decoded)], reference)
    recorder = ProjectionRecorder(model, stack, variants)
    try:
        scores = decoder.forced(continuation, n_prefilled)
    finally:
        recorder.leave()
    positions = torch.arange(len(prompt), device=model.facts.device)
    recorder.check(variants, reference, [positions, positions[-n_prefilled:]])
    return scores


class ProjectionRecorder:
    """Checks that attention's output projection receives exactly what a variant substitutes for heads."""

    def __init__(self, model: HookedModel, stack: LayerStack, variants: Sequence[Variant]) -> None:
        self._facts = model.facts
        layers = {a.component.layer for v in variants for a in v.ablations if a.component.part.slot is Slot.HEADS}
        self._received: dict[int, list[torch.Tensor]] = {layer: [] for layer in layers}
        self._handles = [stack.projections[layer].register_forward_hook(self._look(layer)) for layer in layers]

    def _look(self, layer: int) -> Callable[..., None]:
        def look(module: torch.nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            self._received[layer].append(args[0][0])

        return look

    def leave(self) -> None:
        for handle in self._handles:
            handle.remove()

    def check(
        self, variants: Sequence[Variant], reference: ReferenceActivations, positions: Sequence[torch.Tensor]
    ) -> None:
        """Whether one of the calls, on rows at some of the `positions`, contained what each head's ablation sets."""
        for ablation in (a for v in variants for a in v.ablations if a.component.part.slot is Slot.HEADS):
            layer = ablation.component.layer
            calls = [(z, rows) for z in self._received[layer] for rows in positions if len(z) == len(rows)]
            if not any(self._holds(z, rows, ablation, reference) for z, rows in calls):
                raise UnsupportedByFastPath(
                    f"{self._facts.architecture}: the output projection of layer {layer}'s attention does not receive "
                    f"what {ablation.name} sets"
                )

    def _holds(
        self, received: torch.Tensor, position_ids: torch.Tensor, ablation: Ablation, reference: ReferenceActivations
    ) -> bool:
        heads = ablation.component.selected(self._facts)
        z = received.reshape(len(position_ids), self._facts.n_heads, -1)
        return torch.equal(z[:, heads], replacement(ablation, reference, position_ids, z)[:, heads])
