"""Variants as JSON, so that a run folder says what was changed and can be resumed."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from lensprune.ablation.components import Component
from lensprune.ablation.positions import ALL
from lensprune.ablation.variants import Ablation, Variant
from lensprune.errors import UserError
from lensprune.runs.hook_hash import hook_hash

__all__ = ["variant_from_json", "variant_to_json"]

_OURS = "lensprune."
_NOT_PLACE = ("ablation", "at", "source", "definition")


def _ablation_to_json(ablation: Ablation) -> dict[str, Any]:
    """Component, kind and positions; for kinds and parts registered from outside also a hash of their code."""
    data = {**ablation.component.to_json(), "ablation": ablation.kind}
    if ablation.at != ALL:
        data["at"] = ablation.at
    if ablation.source is not None:
        data["source"] = ablation.source
    part, kind = ablation.component.part, ablation.definition
    outside: list[Any] = []
    if not part.component.__module__.startswith(_OURS):
        outside += [part.slot.name, part.select]
    if kind.value is not None and not kind.value.__module__.startswith(_OURS):
        outside += [kind.value, kind.reference, kind.reads_activation]
    if outside:
        data["definition"] = hook_hash(partial(_nothing, *outside))
    return data


def _nothing(*given: Any) -> None:
    """Holds what is hashed."""


def variant_to_json(variant: Variant) -> dict[str, Any]:
    """Name, ablations and hooks of a variant; a hook is described by its name and `hook_hash`."""
    data: dict[str, Any] = {
        "name": variant.name,
        "ablations": [_ablation_to_json(ablation) for ablation in variant.ablations],
    }
    if variant.hooks:
        data["hooks"] = [{"name": name, "function": hook_hash(function)} for name, function in variant.hooks]
    return data


def variant_from_json(data: Mapping[str, Any]) -> Variant:
    """Rebuild a variant.

    Raises:
        UserError: a component or ablation that is not registered here; or the variant has hooks written in Python,
            which a file can't hold, or exchanges weights with a second model.
    """
    if "replacement" in data:
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
        Ablation(
            Component.from_json({k: v for k, v in part.items() if k not in _NOT_PLACE}),
            part["ablation"],
            part.get("at", ALL),
            part.get("source"),
        )
        for part in data["ablations"]
    )
    return Variant(data["name"], ablations)
