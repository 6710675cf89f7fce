"""Variants as JSON, so that a run folder says what was changed and can be continued from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lensprune.ablation.components import MLP, Attention, Component, Head, KVGroup, Layer
from lensprune.ablation.variants import Ablation, Variant
from lensprune.errors import UserError, unknown_name
from lensprune.runs.hook_hash import hook_hash

__all__ = ["variant_from_json", "variant_to_json"]

_KINDS: dict[str, type] = {"layer": Layer, "attention": Attention, "mlp": MLP, "head": Head, "kv_group": KVGroup}
_NAMES = {kind: name for name, kind in _KINDS.items()}


def _component_to_json(component: Component) -> dict[str, Any]:
    data: dict[str, Any] = {"kind": _NAMES[type(component)], "layer": component.layer}
    if isinstance(component, Head):
        data["head"] = component.head
    if isinstance(component, KVGroup):
        data["group"] = component.group
    return data


def _component_from_json(data: Mapping[str, Any]) -> Component:
    kind = data["kind"]
    if kind not in _KINDS:
        raise unknown_name("component", str(kind), _KINDS)
    fields = {key: int(value) for key, value in data.items() if key != "kind"}
    return _KINDS[kind](**fields)


def variant_to_json(variant: Variant) -> dict[str, Any]:
    """Name, ablations and hooks of a variant; a hook is described by its name and `hook_hash`."""
    data: dict[str, Any] = {
        "name": variant.name,
        "ablations": [{**_component_to_json(a.component), "ablation": a.kind} for a in variant.ablations],
    }
    if variant.hooks:
        data["hooks"] = [{"name": name, "function": hook_hash(function)} for name, function in variant.hooks]
    return data


def variant_from_json(data: Mapping[str, Any]) -> Variant:
    """Rebuild a variant.

    Raises:
        UserError: the variant has hooks written in Python, which a file can't hold, or exchanges weights with a second
            model.
    """
    if "swap" in data:
        raise UserError(
            "this run exchanges the weights of two models: continue by calling lensprune delta again with the same "
            "arguments and the same out folder"
        )
    if data.get("hooks"):
        raise UserError(
            f"variant {data['name']!r} has hooks written in Python: continue by calling lensprune.sweep again "
            "with the same arguments and the same out folder"
        )
    ablations = tuple(
        Ablation(_component_from_json({k: v for k, v in part.items() if k != "ablation"}), part["ablation"])
        for part in data["ablations"]
    )
    return Variant(data["name"], ablations)
