"""The weights of a part, in a hooked model and in its hook-free twin."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from lensprune.errors import UserError
from lensprune.models.base import HookedModel
from lensprune.models.bridge import BridgeModel
from lensprune.replacement.parts import Part

__all__ = ["part_tensors", "plain_attention", "require_bridge", "twin_tensors", "weights_are_tied"]


def require_bridge(model: HookedModel) -> BridgeModel:
    """The model as a bridge with a hook-free twin, whose weights can be reached by name.

    Raises:
        UserError: it is another kind of model, or a bridge that the user booted.
    """
    if not isinstance(model, BridgeModel) or model.raw_model is None:
        raise UserError(
            f"the weights of {model.facts.name} can't be replaced: load it with lensprune.load_model as a "
            "TransformerBridge rather than booting it yourself"
        )
    return model


@contextmanager
def plain_attention(model: BridgeModel) -> Iterator[Any]:
    """The hook-free twin with Hugging Face's attention, which an executor may have replaced."""
    raw: Any = model.raw_model
    configs = {id(m.config): m.config for m in raw.modules() if hasattr(m, "config")}.values()
    before = [config._attn_implementation_internal for config in configs]
    try:
        for config in configs:
            config._attn_implementation_internal = "eager"
        yield raw
    finally:
        for config, name in zip(configs, before, strict=True):
            config._attn_implementation_internal = name


def weights_are_tied(model: BridgeModel) -> bool:
    """Whether embedding and unembedding are one tensor."""
    raw: Any = model.raw_model
    head = raw.get_output_embeddings()
    return head is not None and raw.get_input_embeddings().weight.data_ptr() == head.weight.data_ptr()


def part_tensors(model: BridgeModel, part: Part) -> dict[str, torch.Tensor]:
    """Every tensor (or view) to overwrite so that `part` changes in the bridge and in its twin, by name.

    Views of the same storage count once. Separate copies in the bridge (a fused projection split in three) are named
    ``bridge:...``.

    Raises:
        UserError: the architecture does not store this part separately.
    """
    twin = twin_tensors(model, part)
    if part.component == "head":
        return twin
    covered = {tensor.untyped_storage().data_ptr() for tensor in twin.values()}
    bridge_copies: dict[str, torch.Tensor] = {}
    for name, parameter in _bridge_parameters(model, part):
        storage = parameter.untyped_storage().data_ptr()
        if storage not in covered:
            covered.add(storage)
            bridge_copies[f"bridge:{name}"] = parameter
    return {**twin, **bridge_copies}


def twin_tensors(model: BridgeModel, part: Part) -> dict[str, torch.Tensor]:
    """The tensors (or views) of `part` in the hook-free twin, each storage once, by Hugging Face's names."""
    if part.component == "head":
        return dict(_head_views(model, part))
    raw: Any = model.raw_model
    tensors: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for path in _module_paths(model, part):
        for name, parameter in raw.get_submodule(path).named_parameters():
            if parameter.data_ptr() not in seen:
                seen.add(parameter.data_ptr())
                tensors[f"{path}.{name}"] = parameter
    if not tensors:
        raise _unsupported(model, part)
    return tensors


def _unsupported(model: BridgeModel, part: Part) -> UserError:
    return UserError(
        f"{model.facts.architecture} does not store {part.component} separately: {part.label} can't be replaced"
    )


def _mapping(model: BridgeModel) -> dict[str, Any]:
    bridge: Any = model.module
    return dict(bridge.adapter.component_mapping)


def _module_paths(model: BridgeModel, part: Part) -> list[str]:
    """Paths of the twin's modules that make up `part`."""
    mapping = _mapping(model)
    if part.layer is None:
        names = {"embed": ("embed", "pos_embed"), "unembed": ("unembed",), "norms": ("ln_final",)}[part.component]
        return [mapping[name].name for name in names if name in mapping and mapping[name].name]
    block = f"{mapping['blocks'].name}.{part.layer}"
    inner = mapping["blocks"].submodules
    if part.component == "layer":
        return [block]
    if part.component == "norms":
        return [f"{block}.{sub.name}" for name, sub in inner.items() if name.startswith("ln") and sub.name]
    owner = inner.get("mlp" if part.component == "mlp" else "attn")
    if owner is None or not owner.name:
        raise _unsupported(model, part)
    if part.component != "attention_output":
        return [f"{block}.{owner.name}"]
    projection = owner.submodules.get("o")
    if projection is None or not projection.name:
        raise _unsupported(model, part)
    return [f"{block}.{owner.name}.{projection.name}"]


def _bridge_parameters(model: BridgeModel, part: Part) -> Iterator[tuple[str, torch.Tensor]]:
    bridge: Any = model.module
    if part.layer is None:
        names = {"embed": ("embed", "pos_embed"), "unembed": ("unembed",), "norms": ("ln_final",)}[part.component]
        owners = [(name, getattr(bridge, name, None)) for name in names]
    else:
        block = bridge.blocks[part.layer]
        inside = {
            "layer": [""],
            "attention": ["attn"],
            "attention_output": ["attn.o"],
            "mlp": ["mlp"],
            "norms": [name for name in _mapping(model)["blocks"].submodules if name.startswith("ln")],
        }[part.component]
        owners = [(f"blocks.{part.layer}.{path}", block.get_submodule(path) if path else block) for path in inside]
    for owner_name, owner in owners:
        if isinstance(owner, torch.nn.Module):
            for name, parameter in owner.named_parameters():
                yield f"{owner_name}.{name}", parameter


def _head_views(model: BridgeModel, part: Part) -> Iterator[tuple[str, torch.Tensor]]:
    facts, mapping = model.facts, _mapping(model)
    attention = mapping["blocks"].submodules["attn"]
    raw: Any = model.raw_model
    path = f"{mapping['blocks'].name}.{part.layer}.{attention.name}"
    module = raw.get_submodule(path)
    assert part.head is not None
    rows = slice(part.head * facts.d_head, (part.head + 1) * facts.d_head)
    for name, by_row in (("q", True), ("o", False)):
        sub = attention.submodules.get(name)
        linear = getattr(module, sub.name, None) if sub is not None and sub.name else None
        if not isinstance(linear, torch.nn.Linear):
            raise UserError(
                f"{facts.architecture} has no linear query and output projections of their own, so heads can't be "
                "replaced: use component attention or attention_output"
            )
        yield f"{path}.{sub.name}.weight", linear.weight[rows] if by_row else linear.weight[:, rows]
        if by_row and linear.bias is not None:
            yield f"{path}.{sub.name}.bias", linear.bias[rows]
