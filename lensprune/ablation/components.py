"""Where a model can be changed: layers, attention and MLP branches, query heads and key/value groups."""

from __future__ import annotations

from dataclasses import dataclass

from lensprune.errors import UserError
from lensprune.models.base import ModelFacts

__all__ = ["MLP", "Attention", "Component", "Head", "KVGroup", "Layer", "check_component", "heads_of"]


@dataclass(frozen=True, order=True)
class Layer:
    """A whole block: its contribution ``resid_post − resid_pre`` to the residual stream."""

    layer: int

    @property
    def label(self) -> str:
        return f"L{self.layer}"


@dataclass(frozen=True, order=True)
class Attention:
    """The attention branch of a block, as it is added to the residual stream (`hook_attn_out`)."""

    layer: int

    @property
    def label(self) -> str:
        return f"L{self.layer}.attn"


@dataclass(frozen=True, order=True)
class MLP:
    """The MLP branch of a block, as it is added to the residual stream (`hook_mlp_out`)."""

    layer: int

    @property
    def label(self) -> str:
        return f"L{self.layer}.mlp"


@dataclass(frozen=True, order=True)
class Head:
    """One query head, at `attn.hook_z`; keys and values stay as they are."""

    layer: int
    head: int

    @property
    def label(self) -> str:
        return f"L{self.layer}.H{self.head}"


@dataclass(frozen=True, order=True)
class KVGroup:
    """All query heads that share key/value head `group`, at `attn.hook_z`."""

    layer: int
    group: int

    @property
    def label(self) -> str:
        return f"L{self.layer}.KV{self.group}"


Component = Layer | Attention | MLP | Head | KVGroup


def heads_of(component: Head | KVGroup, facts: ModelFacts) -> list[int]:
    """Query-head indices that a head-level component covers."""
    if isinstance(component, Head):
        return [component.head]
    size = facts.heads_per_group
    return list(range(component.group * size, (component.group + 1) * size))


def check_component(component: Component, facts: ModelFacts) -> None:
    """Raise `UserError` with the valid range if `component` does not exist in the model."""

    def check(kind: str, value: int, size: int) -> None:
        if not 0 <= value < size:
            raise UserError(
                f"{kind} {value} of {component.label} is out of range: {facts.name} has {kind}s 0 to {size - 1}"
            )

    check("layer", component.layer, facts.n_layers)
    if isinstance(component, Head):
        check("head", component.head, facts.n_heads)
    if isinstance(component, KVGroup):
        check("kv-group", component.group, facts.n_key_value_heads)
