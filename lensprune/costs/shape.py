"""What one token costs in a model of a given shape: matrix parameters by part, read from modules without weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PretrainedConfig

from lensprune.errors import UserError
from lensprune.models.base import HookedModel, ModelFacts
from lensprune.models.model_config import ModelConfig

__all__ = ["LayerShape", "ModelShape", "loaded_shape", "model_shape"]

_EXPERT_TENSOR = 3


@dataclass(frozen=True)
class LayerShape:
    """Weights of one block that multiply each token: `attention` (projections) and `mlp` (of the experts a token uses).

    A multiplication by a weight and its addition are two FLOPs, so a token costs 2 × (`attention` + `mlp`) here, apart
    from attention between tokens.
    """

    attention: int
    mlp: int


@dataclass(frozen=True)
class ModelShape:
    """Sizes that decide time and memory.

    `parameters` counts every tensor once (tied embeddings too); `unembedding` is the weights that make one position's
    logits. Attention between tokens costs `pair_flops` for each query and key.
    """

    parameters: int
    layers: tuple[LayerShape, ...]
    unembedding: int
    n_heads: int
    n_key_value_heads: int
    d_head: int
    d_model: int
    d_vocab: int

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    @property
    def cached_per_token(self) -> int:
        """Numbers that one position's keys and values are made of, at one layer."""
        return 2 * self.n_key_value_heads * self.d_head

    @property
    def pair_flops(self) -> int:
        """FLOPs of one query and one key in all heads of a layer: scores and weighted sum of values."""
        return 4 * self.n_heads * self.d_head

    @property
    def flops_per_token(self) -> int:
        """FLOPs of one position through all blocks and the unembedding, without attention between tokens."""
        return 2 * (sum(layer.attention + layer.mlp for layer in self.layers) + self.unembedding)


def model_shape(model_config: ModelConfig) -> ModelShape:
    """Read the sizes from the model's modules, which are on the meta device.

    Raises:
        UserError: the blocks can't be told from the rest, or a mixture of experts does not say how many a token uses.
    """
    return _shape(model_config.skeleton, model_config.config, model_config.facts)


def loaded_shape(model: HookedModel) -> ModelShape:
    """The sizes of a loaded model.

    Where it is no model of Hugging Face's without hook points (`BridgeModel.raw_model`), attention is counted by its
    heads and everything else in a block as its MLP, of which experts count in full.

    Raises:
        UserError: as `model_shape`.
    """
    raw = getattr(model, "raw_model", None)
    if raw is not None:
        return _shape(raw, raw.config, model.facts)
    facts = model.facts
    attention = 2 * facts.d_model * facts.d_head * (facts.n_heads + facts.n_key_value_heads)
    module: Any = model.module
    blocks = [sum(p.numel() for p in block.parameters() if p.ndim > 1) for block in module.blocks]
    return ModelShape(
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        layers=tuple(LayerShape(attention, max(0, size - attention)) for size in blocks),
        unembedding=facts.d_model * facts.d_vocab,
        n_heads=facts.n_heads,
        n_key_value_heads=facts.n_key_value_heads,
        d_head=facts.d_head,
        d_model=facts.d_model,
        d_vocab=facts.d_vocab,
    )


def _shape(skeleton: torch.nn.Module, config: PretrainedConfig, facts: ModelFacts) -> ModelShape:
    blocks = _blocks(skeleton, facts.n_layers, facts.name)
    head: Any = skeleton.get_output_embeddings()  # type: ignore[operator]
    weight = getattr(head, "weight", None)
    if weight is None:
        raise UserError(f"{facts.name}: {facts.architecture} has no unembedding matrix that can be counted")
    text = getattr(config, "text_config", None) or config
    return ModelShape(
        parameters=sum(parameter.numel() for parameter in skeleton.parameters()),
        layers=tuple(_layer(block, text) for block in blocks),
        unembedding=weight.numel(),
        n_heads=facts.n_heads,
        n_key_value_heads=facts.n_key_value_heads,
        d_head=facts.d_head,
        d_model=facts.d_model,
        d_vocab=facts.d_vocab,
    )


def _blocks(skeleton: torch.nn.Module, n_layers: int, name: str) -> torch.nn.ModuleList:
    lists = [m for m in skeleton.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == n_layers]
    if not lists:
        raise UserError(f"{name}: no list of {n_layers} blocks is found in {type(skeleton).__name__}")
    return max(lists, key=lambda blocks: sum(parameter.numel() for parameter in blocks.parameters()))


def _layer(block: torch.nn.Module, config: PretrainedConfig) -> LayerShape:
    attention = mlp = 0
    for name, parameter in block.named_parameters():
        if parameter.ndim < 2:
            continue
        if "attn" in name.split(".")[0] or "attention" in name.split(".")[0]:
            attention += parameter.numel()
        else:
            mlp += _used(parameter, config)
    return LayerShape(attention, mlp)


def _used(parameter: torch.nn.Parameter, config: PretrainedConfig) -> int:
    if parameter.ndim < _EXPERT_TENSOR:
        return parameter.numel()
    used = getattr(config, "num_experts_per_tok", None)
    if not isinstance(used, int):
        raise UserError(f"{type(config).__name__} does not say how many experts a token uses (num_experts_per_tok)")
    return parameter.numel() // parameter.shape[0] * used
