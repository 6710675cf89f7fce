"""Components: one class per part, from which hooks, fast path, names and JSON derive."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeVar

from lensprune.ablation.positions import positions_named
from lensprune.errors import UserError
from lensprune.registry import Registry

if TYPE_CHECKING:
    from lensprune.models.base import ModelFacts

__all__ = [
    "HEADS_AND_GROUPS",
    "MLP",
    "Attention",
    "Component",
    "ComponentAt",
    "Head",
    "KVGroup",
    "Layer",
    "Part",
    "Slot",
    "check_component",
    "part_named",
    "part_of",
    "parts",
    "register_part",
]


HEADS_AND_GROUPS = "heads-and-groups"
"""The word for a sweep over heads and groups."""


class Slot(Enum):
    """An activation that every executor can replace; the value is its name within a block.

    A component replaces all of it, or some indices along the first axis after the tokens: heads of z [tok, head,
    d_head], dimensions of the others [tok, d_model].

    Examples:
        >>> lp.Slot.ATTENTION.site(2)
        'blocks.2.hook_attn_out'
    """

    CONTRIBUTION = "contribution"
    """``hook_resid_post − hook_resid_pre``, what the whole block adds to the residual stream; no hook point."""
    ATTENTION = "hook_attn_out"
    MLP = "hook_mlp_out"
    HEADS = "attn.hook_z"

    def site(self, layer: int) -> str:
        """Name of the activation in the block of `layer`."""
        return f"blocks.{layer}.{self.value}"

    def width(self, facts: ModelFacts) -> int:
        """Indices along the first axis after the tokens."""
        return facts.n_heads if self is Slot.HEADS else facts.d_model


@dataclass(frozen=True)
class Part:
    """One kind of component; made by `register_part`.

    `name` is used in records and JSON, `over` on the command line. `label` is a format of the component's fields.
    `index`: the field that tells several components of a layer apart (``None``: there is one per layer), called
    `index_word` in messages; `size` of the model's facts says how many there are. `select` gives, for the facts and an
    index, the indices of the slot that the component covers (``None``: all of them).
    """

    name: str
    over: str
    slot: Slot
    label: str
    component: type[Component]
    index: str | None
    index_word: str
    size: Callable[[ModelFacts], int] | None
    select: Callable[[ModelFacts, int], Sequence[int]] | None
    default_ablation: str

    @property
    def is_branch(self) -> bool:
        """Whether the part is all that a block or one of its branches adds to the residual stream."""
        return self.slot is not Slot.HEADS and self.select is None

    @property
    def has_pattern(self) -> bool:
        """Whether the part is some of a block's heads or all of its attention, so that attention edges can be cut."""
        return self.slot is Slot.HEADS or (self.slot is Slot.ATTENTION and self.is_branch)

    def each(self, facts: ModelFacts, layer: int, indices: Sequence[int] | None = None) -> list[Component]:
        """The components of one layer, or those with the given indices.

        Raises:
            UserError: an index that the model lacks.
        """
        if self.size is None:
            components = [self.component(layer)]
        else:
            of_layer: Callable[..., Component] = self.component
            chosen = range(self.size(facts)) if indices is None else indices
            components = [of_layer(layer, index) for index in chosen]
        for component in components:
            check_component(component, facts)
        return components


_PARTS: Registry[Part] = Registry("component")
_BY_CLASS: dict[type, Part] = {}


@dataclass(frozen=True, order=True)
class Component:
    """A component of the model at block `layer`; the subclass says which.

    `Layer`, `Attention`, `MLP`, `Head` and `KVGroup` are built in; `register_part` adds others.

    Examples:
        >>> head = lp.Head(2, 3)
        >>> isinstance(head, lp.Component), head.label, head.site
        (True, 'L2.H3', 'blocks.2.attn.hook_z')
        >>> lp.Component.from_json(head.to_json()) == head
        True
    """

    layer: int

    @property
    def part(self) -> Part:
        return part_of(self)

    @property
    def index(self) -> int | None:
        """Index among the layer's components of this part; ``None`` if there is one per layer."""
        name = self.part.index
        return None if name is None else int(getattr(self, name))

    @property
    def label(self) -> str:
        return self.part.label.format(**self._fields())

    @property
    def site(self) -> str:
        """Name of the activation that the component is, or is part of: a hook name, except for `Slot.CONTRIBUTION`."""
        return self.part.slot.site(self.layer)

    def __matmul__(self, at: str) -> ComponentAt:
        """The component at some positions: ``Head(16, 0) @ "last"``."""
        return ComponentAt(self.layer, self, positions_named(at).text)

    def selected(self, facts: ModelFacts) -> list[int] | None:
        """Indices along the site's first axis after the tokens; ``None``: all."""
        select, index = self.part.select, self.index
        if select is None:
            return None
        return list(select(facts, 0 if index is None else index))

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.part.name, **self._fields()}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Component:
        """Read what `to_json` wrote.

        Raises:
            UserError: an unknown part.
        """
        of_fields: Callable[..., Component] = part_named(str(data["kind"])).component
        return of_fields(**{name: int(value) for name, value in data.items() if name != "kind"})

    def _fields(self) -> dict[str, int]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, order=True)
class ComponentAt(Component):
    """A component, to be ablated at some positions only; `Ablation` takes it apart. Made by ``component @ at``.

    Examples:
        >>> lp.Ablation(lp.Head(2, 3) @ "last", "zero").name
        'L2.H3@last.zero'
    """

    component: Component
    at: str

    def __repr__(self) -> str:
        return f"{self.component!r} @ {self.at!r}"

    @property
    def label(self) -> str:
        return f"{self.component.label}@{self.at}"


C = TypeVar("C", bound=type[Component])


def register_part(
    name: str,
    *,
    over: str,
    slot: Slot,
    label: str,
    size: Callable[[ModelFacts], int] | None = None,
    select: Callable[[ModelFacts, int], Sequence[int]] | None = None,
    index_word: str | None = None,
    default_ablation: str = "zero",
) -> Callable[[C], C]:
    """Register the decorated frozen dataclass, a subclass of `Component`, as a component that can be ablated.

    The class has at most one field besides `layer`, which identifies the components of one layer.

    Args:
        name: name in records and JSON.
        over: name on the command line and in `lensprune.sweep`.
        slot: the activation that the component is, or is a part of.
        label: a format string of the fields, for names of variants.
        size: maps the model's facts to the number of components per layer; ``None`` if there is one.
        select: maps the facts and an index to the indices of the slot that the component covers; ``None``: all.
        index_word: name of the index in messages; ``None`` takes the field's name.
        default_ablation: the kind that a sweep uses by default.

    Raises:
        UserError: `name` or `over` is taken; more than one further field; a field without `size`, or the reverse.

    Examples:
        >>> from dataclasses import dataclass
        >>> @lp.register_part(
        ...     "mlp_half", over="mlp-halves", slot=lp.Slot.MLP, label="L{layer}.mlp{half}", size=lambda facts: 2,
        ...     select=lambda facts, half: range(half * facts.d_model // 2, (half + 1) * facts.d_model // 2),
        ... )
        ... @dataclass(frozen=True, order=True)
        ... class MLPHalf(lp.Component):
        ...     half: int
        >>> MLPHalf(2, 1).label
        'L2.mlp1'
    """

    def register(component: C) -> C:
        further = [field.name for field in fields(component) if field.name != "layer"]
        if len(further) > 1 or bool(further) != (size is not None):
            raise UserError(
                f"part {name!r}: {component.__name__} has the fields {', '.join(['layer', *further])}: expected "
                "layer alone, or layer and one index with a size"
            )
        index = further[0] if further else None
        row = Part(name, over, slot, label, component, index, index_word or index or "", size, select, default_ablation)
        taken = next((part.name for part in _PARTS.rows() if part.over == over and part.name != name), None)
        if taken is not None or over == HEADS_AND_GROUPS:
            what = "heads and groups" if taken is None else f"the part {taken!r}"
            raise UserError(f"part {name!r}: over {over!r} is {what} already: choose another word")
        _PARTS.add(name, row, component)
        _BY_CLASS[component] = row
        return component

    return register


def parts() -> tuple[Part, ...]:
    """All parts, built-in ones first."""
    return _PARTS.rows()


def part_named(name: str) -> Part:
    """The part called `name`.

    Raises:
        UserError: there is none.
    """
    return _PARTS.get(name)


def part_of(component: object) -> Part:
    """The part that a component belongs to.

    Raises:
        UserError: its class is not registered.
    """
    part = _BY_CLASS.get(type(component))
    if part is None:
        raise UserError(
            f"{component!r} is not a component that can be ablated: expected one of "
            f"{', '.join(known.__name__ for known in _BY_CLASS)}, or a class with register_part"
        )
    return part


def check_component(component: Component, facts: ModelFacts) -> None:
    """Raise `UserError` with the valid range if `component` does not exist in the model."""

    def check(kind: str, value: int, size: int) -> None:
        if not 0 <= value < size:
            raise UserError(
                f"{kind} {value} of {component.label} is out of range: {facts.name} has {kind}s 0 to {size - 1}"
            )

    part = part_of(component)
    check("layer", component.layer, facts.n_layers)
    if part.size is not None and component.index is not None:
        check(part.index_word, component.index, part.size(facts))
    selected, width = component.selected(facts), part.slot.width(facts)
    if selected is not None and not (selected and min(selected) >= 0 and max(selected) < width):
        raise UserError(
            f"{component.label} covers {selected[:3]} of {part.slot.value}: expected one or more of 0 to {width - 1}"
        )


@register_part("layer", over="layers", slot=Slot.CONTRIBUTION, label="L{layer}", default_ablation="skip")
@dataclass(frozen=True, order=True)
class Layer(Component):
    """A whole block: its contribution ``resid_post − resid_pre`` to the residual stream.

    Examples:
        >>> lp.Layer(2).label
        'L2'
    """


@register_part("attention", over="attention", slot=Slot.ATTENTION, label="L{layer}.attention")
@dataclass(frozen=True, order=True)
class Attention(Component):
    """The attention branch of a block, as it is added to the residual stream (`hook_attn_out`).

    Examples:
        >>> lp.Attention(2).site
        'blocks.2.hook_attn_out'
    """


@register_part("mlp", over="mlp", slot=Slot.MLP, label="L{layer}.mlp")
@dataclass(frozen=True, order=True)
class MLP(Component):
    """The MLP branch of a block, as it is added to the residual stream (`hook_mlp_out`).

    Examples:
        >>> lp.MLP(2).site
        'blocks.2.hook_mlp_out'
    """


@register_part(
    "head",
    over="heads",
    slot=Slot.HEADS,
    label="L{layer}.H{head}",
    size=lambda facts: facts.n_heads,
    select=lambda facts, head: [head],
)
@dataclass(frozen=True, order=True)
class Head(Component):
    """One query head, at `attn.hook_z`; keys and values are unchanged.

    Examples:
        >>> lp.Head(2, 3).label
        'L2.H3'
    """

    head: int


@register_part(
    "kv_group",
    over="kv-groups",
    slot=Slot.HEADS,
    label="L{layer}.KV{group}",
    size=lambda facts: facts.n_key_value_heads,
    select=lambda facts, group: range(group * facts.heads_per_group, (group + 1) * facts.heads_per_group),
    index_word="key/value group",
)
@dataclass(frozen=True, order=True)
class KVGroup(Component):
    """All query heads that share key/value head `group`, at `attn.hook_z`.

    Examples:
        >>> lp.KVGroup(2, 1).label, lp.KVGroup(2, 1).selected(lp.as_hooked_model(model).facts)
        ('L2.KV1', [2, 3])
    """

    group: int
