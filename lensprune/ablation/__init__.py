"""Components, ablations, variants and the hooks that implement them."""

from typing import TYPE_CHECKING

from lensprune.registry import lazy_names

if TYPE_CHECKING:
    from lensprune.ablation.collect import collect_reference
    from lensprune.ablation.components import (
        MLP,
        Attention,
        Component,
        Head,
        KVGroup,
        Layer,
        Part,
        Slot,
        register_part,
    )
    from lensprune.ablation.enumeration import (
        cumulative,
        each_attention,
        each_head,
        each_head_and_group,
        each_kv_group,
        each_layer,
        each_mlp,
        enumerate_variants,
        layer_range,
        parse_indices,
    )
    from lensprune.ablation.hooks import BatchState, VariantHooks
    from lensprune.ablation.kinds import AblatedSite, AblationKind, register_ablation
    from lensprune.ablation.reference import ReferenceActivations
    from lensprune.ablation.variants import CLEAN, Ablation, Variant

__all__ = [
    "CLEAN",
    "MLP",
    "AblatedSite",
    "Ablation",
    "AblationKind",
    "Attention",
    "BatchState",
    "Component",
    "Head",
    "KVGroup",
    "Layer",
    "Part",
    "ReferenceActivations",
    "Slot",
    "Variant",
    "VariantHooks",
    "collect_reference",
    "cumulative",
    "each_attention",
    "each_head",
    "each_head_and_group",
    "each_kv_group",
    "each_layer",
    "each_mlp",
    "enumerate_variants",
    "layer_range",
    "parse_indices",
    "register_ablation",
    "register_part",
]

__getattr__ = lazy_names(__name__, ("components", "kinds", "variants", "enumeration", "reference", "collect", "hooks"))
