"""Write a tiny model as a GGUF file, by llama.cpp's conventions and the gguf package's own quantiser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from gguf import (
    MODEL_ARCH,
    MODEL_ARCH_NAMES,
    GGMLQuantizationType,
    GGUFWriter,
    TokenType,
    dequantize,
    get_tensor_name_map,
    quantize,
)
from transformers import PreTrainedModel

from tests.helpers.families import SPECIAL_TOKENS, byte_tokenizer, hf_model

ARCHITECTURES = {
    "llama": MODEL_ARCH.LLAMA,
    "qwen2": MODEL_ARCH.QWEN2,
    "qwen3": MODEL_ARCH.QWEN3,
    "gemma3": MODEL_ARCH.GEMMA3,
}
WIDTHS = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
"""Multiples of 32, the block of the simple quantisations."""


def write_gguf(
    path: Path,
    family: str,
    kind: GGMLQuantizationType,
    *,
    rope_freqs: bool = False,
    metadata: Callable[[GGUFWriter], object] | None = None,
) -> PreTrainedModel:
    """Write `path` and return the Hugging Face model that holds the very values a reader must find in it.

    `rope_freqs` adds Llama 3.1's divisors of the rotary frequencies, 1 to 8; the returned model does not have them.
    `metadata` adds keys.
    """
    overrides = dict(WIDTHS)
    if family == "gemma3":
        overrides["query_pre_attn_scalar"] = WIDTHS["head_dim"]
    model = hf_model(family, scale=2.0, **overrides)
    config, architecture = model.config, ARCHITECTURES[family]
    writer = GGUFWriter(path, MODEL_ARCH_NAMES[architecture])
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(WIDTHS["head_dim"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if family == "gemma3":
        writer.add_sliding_window(config.sliding_window)
        writer.add_rope_freq_base(config.rope_parameters["full_attention"]["rope_theta"])
    else:
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    _write_tokenizer(writer)
    if metadata is not None:
        metadata(writer)
    if rope_freqs:
        writer.add_tensor("rope_freqs.weight", np.linspace(1, 8, WIDTHS["head_dim"] // 2, dtype=np.float32))
    state = model.state_dict()
    names = get_tensor_name_map(architecture, config.num_hidden_layers)
    with torch.no_grad():
        for name, parameter in state.items():
            if name == "lm_head.weight" and config.tie_word_embeddings:
                continue
            stored_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
            assert stored_name is not None
            _write_tensor(writer, stored_name, name, parameter, model, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def _write_tensor(
    writer: GGUFWriter,
    stored_name: str,
    name: str,
    parameter: torch.Tensor,
    model: PreTrainedModel,
    kind: GGMLQuantizationType,
) -> None:
    config = model.config
    values = parameter.numpy().astype(np.float32)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    part = next((part for part in heads if part in name), None)
    rotary = config.model_type == "llama" and part is not None
    norm_offset = config.model_type == "gemma3_text" and name.endswith("norm.weight")
    if rotary:
        values = interleave(values, heads[part])
    if norm_offset:
        values = values + 1.0
    if values.ndim == 1:
        writer.add_tensor(stored_name, np.ascontiguousarray(values))
        return
    raw = quantize(np.ascontiguousarray(values), kind)
    writer.add_tensor(stored_name, raw, raw_dtype=kind)
    kept = dequantize(raw, kind).astype(np.float32)
    if rotary:
        kept = deinterleave(kept, heads[part])
    parameter.copy_(torch.from_numpy(np.ascontiguousarray(kept)))


def interleave(rows: np.ndarray, n_heads: int) -> np.ndarray:
    """Hugging Face's row order of a rotary projection → llama.cpp's, one row at a time."""
    size = len(rows) // n_heads
    order = [
        head * size + pair + half * size // 2 for head in range(n_heads) for pair in range(size // 2) for half in (0, 1)
    ]
    return rows[order]


def deinterleave(rows: np.ndarray, n_heads: int) -> np.ndarray:
    """The inverse of `interleave`."""
    order = interleave(np.arange(len(rows)), n_heads)
    restored = np.empty_like(rows)
    restored[order] = rows
    return restored


def _write_tokenizer(writer: GGUFWriter) -> None:
    vocab = byte_tokenizer().get_vocab()
    tokens = sorted(vocab, key=vocab.__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL if token in SPECIAL_TOKENS else TokenType.NORMAL for token in tokens])
    # The format has no empty array, so a byte-level vocabulary without merges leaves the key out.
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(3)
