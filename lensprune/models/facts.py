"""Shape and provenance of a model."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from lensprune.models.base import BosPolicy, ModelFacts
from lensprune.models.tokenizers import hash_tokenizer

__all__ = ["Origin", "context_length", "hash_config", "hash_weights", "model_facts"]

_DEFAULT_CONTEXT = 2048
_UNSET_TOKENIZER_LENGTH = 10**18


class Origin(NamedTuple):
    """A model's identity, part of its facts; see `ModelFacts`."""

    name: str
    source: str
    architecture: str
    weights_hash: str


def model_facts(
    origin: Origin,
    cfg: Any,
    config: PretrainedConfig | None,
    tokenizer: PreTrainedTokenizerBase,
    *,
    dtype: torch.dtype,
    device: str,
    bos: BosPolicy,
) -> ModelFacts:
    """Collect the facts from a TransformerLens `cfg` and, where there is one, the Hugging Face `config`."""
    n_heads = int(cfg.n_heads)
    return ModelFacts(
        **origin._asdict(),
        n_layers=int(cfg.n_layers),
        n_heads=n_heads,
        n_key_value_heads=int(getattr(cfg, "n_key_value_heads", None) or n_heads),
        d_head=int(cfg.d_head),
        d_model=int(cfg.d_model),
        d_vocab=int(cfg.d_vocab),
        n_ctx=context_length(config, tokenizer) if config is not None else int(cfg.n_ctx),
        dtype=str(dtype).removeprefix("torch."),
        device=device,
        bos_policy=bos,
        config_hash=hash_config(config if config is not None else cfg),
        tokenizer_hash=hash_tokenizer(tokenizer),
        parallel_attn_mlp=bool(getattr(cfg, "parallel_attn_mlp", False)),
    )


def context_length(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """Longest input in tokens, by lm-eval 0.4.13's rule (``resolve_max_length``)."""
    text_config = getattr(config, "text_config", None) or config
    for attribute in ("n_positions", "max_position_embeddings", "n_ctx"):
        value = getattr(text_config, attribute, None)
        if value is not None:
            return int(value)
    length = tokenizer.model_max_length
    return int(length) if length and length < _UNSET_TOKENIZER_LENGTH else _DEFAULT_CONTEXT


_NOT_NUMBERS = frozenset(
    [
        "architectures",
        "auto_map",
        "device",
        "dtype",
        "gradient_checkpointing",
        "init_weights",
        "initializer_range",
        "model_name",
        "n_devices",
        "n_params",
        "original_architecture",
        "output_attentions",
        "output_hidden_states",
        "return_dict",
        "seed",
        "tokenizer_name",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    ]
)
"""Configuration fields that don't affect logits, or are recorded separately (dtype, device)."""


def hash_config(config: Any) -> str:
    """sha256 over the values of a Hugging Face or TransformerLens configuration that decide the numbers.

    Two models with the same weights differ if their rotary base, norm epsilon or attention window does.
    """
    values = config.to_dict()
    kept = {key: value for key, value in values.items() if key not in _NOT_NUMBERS and not key.startswith("_")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()


def hash_weights(state: Mapping[str, torch.Tensor]) -> str:
    """sha256 over the sorted lines ``name dtype shape sha256(bytes)`` of `state`.

    The bytes of each tensor are hashed on their own, so that several cores can share the work; tensors that share
    memory are read once.
    """
    unique: dict[tuple[Any, ...], torch.Tensor] = {}
    keys = {}
    for name, tensor in state.items():
        keys[name] = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        unique[keys[name]] = tensor
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        digests = dict(zip(unique, pool.map(_hash_tensor, unique.values()), strict=True))
    total = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name]
        shape = "x".join(str(size) for size in tensor.shape)
        total.update(f"{name} {str(tensor.dtype).removeprefix('torch.')} {shape} {digests[keys[name]]}\n".encode())
    return total.hexdigest()


def _hash_tensor(tensor: torch.Tensor) -> str:
    flat = tensor.detach().cpu().contiguous()
    size = flat.numel() * flat.element_size()
    # numpy has no bfloat16, and a copy of every weight would double the memory: read the storage in place.
    view = (ctypes.c_char * size).from_address(flat.data_ptr()) if size else b""
    return hashlib.sha256(view).hexdigest()
