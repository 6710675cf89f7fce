"""TransformerLens hooks of a variant: the definition of what each ablation does."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, assert_never

import torch
from jaxtyping import Bool, Int

from lensprune.ablation.components import Component, Slot
from lensprune.ablation.edges import check_pattern, pattern_site, without_edges
from lensprune.ablation.positions import ALL
from lensprune.ablation.reference import ReferenceActivations, check_variants, replacement
from lensprune.ablation.variants import Ablation, Variant
from lensprune.errors import HookNeverFired, LensPruneError, UserError, first_line, unknown_name
from lensprune.models.base import HookedModel, HookFunction, NamedHook

__all__ = ["BatchState", "VariantHooks", "own_hooks", "with_hook_names"]


def with_hook_names(model: HookedModel, variant: Variant) -> Variant:
    """Replace functions that choose hook points by the names of those hook points.

    Each function stands for the hook points that it accepts and that a forward pass runs, each once: many have several
    names, and some never run.

    Raises:
        UserError: a function that accepts no name, or only those of hook points that never run, or fails on one.
    """
    if all(isinstance(name, str) for name, _ in variant.hooks):
        return variant
    hooks: list[NamedHook] = []
    for name, function in variant.hooks:
        names = [name] if isinstance(name, str) else _running(model, name, variant.name)
        hooks += [(hook_name, function) for hook_name in names]
    return replace(variant, hooks=tuple(hooks))


def own_hooks(variant: Variant) -> list[NamedHook]:
    """The hooks of a variant from `with_hook_names`."""
    return [(name, function) for name, function in variant.hooks if isinstance(name, str)]


def _running(model: HookedModel, accepts: Callable[[str], bool], variant: str) -> list[str]:
    """Names that `accepts` accepts, one per hook point that runs, in the order of the layers."""
    function_name = getattr(accepts, "__name__", repr(accepts))
    looked_at = []
    for name in sorted(model.hook_names(), key=_by_number):
        try:
            accepted = bool(accepts(name))
        except Exception as error:
            raise UserError(
                f"variant {variant!r}: {function_name} fails on the hook name {name}: {type(error).__name__}: "
                f"{first_line(error)}; expected a function of a name that returns True or False"
            ) from error
        looked_at += [name] * accepted
    points: dict[int, str] = {}

    def look(name: str) -> HookFunction:
        def note(activation: torch.Tensor, hook: Any) -> None:
            points.setdefault(id(hook), name)

        return note

    token = torch.zeros(1, 1, dtype=torch.long, device=model.facts.device)
    with torch.no_grad(), model.hooks([(name, look(name)) for name in looked_at]):
        model.forward(token, torch.ones_like(token), token)
    if not points:
        what = f"{len(looked_at)} hook points, none of which runs" if looked_at else "no hook point"
        raise UserError(
            f"variant {variant!r}: {function_name} accepts {what}: expected names like blocks.0.hook_resid_pre"
        )
    return sorted(points.values(), key=_by_number)


def _by_number(name: str) -> list[tuple[int, str]]:
    return [(int(piece), "") if piece.isdecimal() else (-1, piece) for piece in re.split(r"(\d+)", name)]


@dataclass
class BatchState:
    """What the hooks need to know about the current forward pass; the executor sets it before each pass.

    `position_ids` counts each row's tokens from its first real one; padding has position 0. `tokens` are their ids,
    `items` the id of each row's item (``None`` if it has none). `masks`: which tokens each of the variant's
    selectors of positions (`Variant.selectors`) chooses, those in the key/value cache included.
    """

    position_ids: Int[torch.Tensor, "batch pos"] | None = None
    tokens: Int[torch.Tensor, "batch pos"] | None = None
    items: tuple[str | None, ...] = ()
    masks: Mapping[str, Bool[torch.Tensor, "batch all_pos"]] = field(default_factory=dict)


class VariantHooks:
    """The hooks of one variant, with a record of which ones fired.

    Order at one hook point: the ablation's writes, then custom hooks, then reads. So if a skipped layer reads its
    input, it sees custom hooks' changes to that input. While a custom hook runs, its ``hook`` argument also has
    ``hook.positions`` and ``hook.tokens``, both [batch, pos]: position and id of each token that the call computes (in
    a decode step, only the newest); and ``hook.item``, a tuple with the id of each row's item.

    Raises:
        UserError: a component or hook name that the model lacks, a missing reference, or cut edges in a model for which
            `check_pattern` fails; and, at run time, a custom hook that returns a tensor on another device.
    """

    def __init__(
        self, model: HookedModel, variant: Variant, state: BatchState, reference: ReferenceActivations | None = None
    ) -> None:
        check_variants([variant], model.facts, reference)
        variant = with_hook_names(model, variant)
        custom, known = own_hooks(variant), model.hook_names()
        for name, _ in custom:
            if name not in known:
                raise unknown_name("hook", name, known)
        self._variant = variant
        self._model = model
        self._state = state
        self._reference = reference
        self._fired: list[bool] = []
        self._residuals: dict[Component, torch.Tensor] = {}
        writes: list[NamedHook] = []
        reads: list[NamedHook] = []
        if any(ablation.definition.cuts_edges for ablation in variant.ablations):
            check_pattern(model)
        for ablation in variant.ablations:
            component = ablation.component
            if ablation.definition.cuts_edges:
                writes.append((pattern_site(component.layer), self._cut(ablation)))
                continue
            match component.part.slot:
                case Slot.CONTRIBUTION:
                    block = f"blocks.{component.layer}"
                    reads.append((f"{block}.hook_resid_pre", self._read_residual(component)))
                    writes.append((f"{block}.hook_resid_post", self._replace_contribution(ablation)))
                case Slot.ATTENTION | Slot.MLP | Slot.HEADS:
                    writes.append((component.site, self._replace(ablation)))
                case unknown:
                    assert_never(unknown)
        informed = [(name, self._informed(name, hook)) for name, hook in custom]
        self.named: Sequence[NamedHook] = [
            (name, self._counted(function)) for name, function in [*writes, *informed, *reads]
        ]

    def check_fired(self) -> None:
        """Raise `HookNeverFired` if any hook did not run since construction."""
        silent = [name for (name, _), fired in zip(self.named, self._fired, strict=True) if not fired]
        if silent:
            raise HookNeverFired(
                f"{self._variant.name}: {', '.join(silent)} never fired, so the results would be the clean model's"
            )

    def _counted(self, function: HookFunction) -> HookFunction:
        index = len(self._fired)
        self._fired.append(False)

        def counted(activation: torch.Tensor, hook: Any) -> torch.Tensor | None:
            self._fired[index] = True
            return function(activation, hook)

        return counted

    def _informed(self, name: str, function: HookFunction) -> HookFunction:
        def informed(activation: torch.Tensor, hook: Any) -> torch.Tensor | None:
            hook.positions, hook.tokens, hook.item = self._state.position_ids, self._state.tokens, self._state.items
            try:
                changed = function(activation, hook)
            finally:
                del hook.positions, hook.tokens, hook.item
            if isinstance(changed, torch.Tensor) and changed.device != activation.device:
                raise UserError(
                    f"{self._variant.name}: the hook at {name} returned a tensor on {changed.device} for an activation "
                    f"on {activation.device}: return one on the activation's device"
                )
            # A smaller tensor would be broadcast.
            if isinstance(changed, torch.Tensor) and changed.shape != activation.shape:
                raise UserError(
                    f"{self._variant.name}: the hook at {name} returned a tensor of shape {list(changed.shape)} for an "
                    f"activation of shape {list(activation.shape)}: return one of the activation's shape"
                )
            return changed

        return informed

    def _replaced(self, ablation: Ablation, activation: torch.Tensor) -> torch.Tensor:
        """The activation [batch, pos, …] of the ablation's site, with the component's part replaced."""
        if self._state.position_ids is None:
            raise LensPruneError("the executor did not set the batch's position ids before the forward pass")
        value = replacement(ablation, self._reference, self._state.position_ids, activation)
        selected = ablation.component.selected(self._model.facts)
        if selected is None:
            return value
        changed = activation.clone()
        changed[:, :, selected] = value[:, :, selected]
        return changed

    def _at(self, ablation: Ablation, changed: torch.Tensor, activation: torch.Tensor) -> torch.Tensor:
        """The changed activation at the ablation's positions, and the activation elsewhere."""
        if ablation.at == ALL:
            return changed
        mask = self._chosen(ablation.name, ablation.at, activation, activation.shape[1])
        return torch.where(mask.view(*mask.shape, *[1] * (activation.ndim - 2)), changed, activation)

    def _chosen(self, name: str, at: str, like: torch.Tensor, size: int) -> Bool[torch.Tensor, "batch size"]:
        """Which of the newest `size` tokens of the rows of `like` are at `at`."""
        if at == ALL:
            return torch.ones(len(like), size, dtype=torch.bool, device=like.device)
        mask = self._state.masks.get(at)
        if mask is None or mask.shape[1] < size:
            raise LensPruneError(f"{name}: the executor did not set which tokens are at {at!r}")
        return mask[:, -size:].to(like.device)

    def _read_residual(self, component: Component) -> HookFunction:
        def read(activation: torch.Tensor, hook: Any) -> None:
            self._residuals[component] = activation

        return read

    def _replace_contribution(self, ablation: Ablation) -> HookFunction:
        def replace(activation: torch.Tensor, hook: Any) -> torch.Tensor:
            residual = self._residuals.pop(ablation.component)
            if ablation.adds_nothing and ablation.replaces_block:
                return residual
            return self._at(ablation, residual + self._replaced(ablation, activation - residual), activation)

        return replace

    def _replace(self, ablation: Ablation) -> HookFunction:
        def replace(activation: torch.Tensor, hook: Any) -> torch.Tensor:
            return self._at(ablation, self._replaced(ablation, activation), activation)

        return replace

    def _cut(self, ablation: Ablation) -> HookFunction:
        heads, source = ablation.component.selected(self._model.facts), ablation.source
        assert source is not None

        def cut(pattern: torch.Tensor, hook: Any) -> torch.Tensor:
            n_queries, n_keys = pattern.shape[2:]
            destinations = self._chosen(ablation.name, ablation.at, pattern, n_queries)
            return without_edges(pattern, heads, destinations, self._chosen(ablation.name, source, pattern, n_keys))

        return cut
