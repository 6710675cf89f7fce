"""Where and how a model is changed."""

from lensprune.ablation.collect import collect_reference
from lensprune.ablation.components import MLP, Attention, Component, Head, KVGroup, Layer
from lensprune.ablation.hooks import BatchState, VariantHooks
from lensprune.ablation.reference import ReferenceActivations
from lensprune.ablation.variants import (
    CLEAN,
    Ablation,
    AblationKind,
    Variant,
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

__all__ = [
    "CLEAN",
    "MLP",
    "Ablation",
    "AblationKind",
    "Attention",
    "BatchState",
    "Component",
    "Head",
    "KVGroup",
    "Layer",
    "ReferenceActivations",
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
]
