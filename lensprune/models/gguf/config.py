"""A Hugging Face configuration from the metadata of a GGUF file.

Missing values are filled in as llama.cpp does. A feature that the Hugging Face class cannot reproduce is refused, not
dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import Gemma3TextConfig, LlamaConfig, PretrainedConfig, Qwen2Config, Qwen3Config

from lensprune.errors import UserError, first_line, nearest
from lensprune.models.gguf.header import GgufFile
from lensprune.models.sizes import check_sizes

__all__ = ["ARCHITECTURES", "gguf_config"]

_GEMMA3_27B_LAYERS = 62
_GEMMA3_LOCAL_THETA = 10_000.0
_GEMMA3_PATTERN = 6


def gguf_config(file: GgufFile) -> PretrainedConfig:
    """The configuration of the model in `file`.

    Raises:
        UserError: an architecture or a feature that is not supported, or a metadata key that is missing.
    """
    build = ARCHITECTURES.get(file.architecture)
    if build is None:
        close = nearest(file.architecture, ARCHITECTURES)
        hint = f"nearest: {', '.join(close)}" if close else f"supported: {', '.join(ARCHITECTURES)}"
        raise UserError(f"GGUF architecture {file.architecture!r} of {file.path.name} is not supported ({hint})")
    if file.get("expert_count"):
        raise UserError(f"GGUF file {file.path.name} is a mixture of experts, which is not supported in GGUF")
    sizes = {
        "num_hidden_layers": file.require("block_count"),
        "hidden_size": file.require("embedding_length"),
        "intermediate_size": file.require("feed_forward_length"),
        "number of attention heads": file.require("attention.head_count"),
    }
    check_sizes(sizes, len(file.tensors), file.path.stat().st_size, file.path.name)
    try:
        return build(file)
    except UserError:
        raise
    except Exception as error:
        # The configuration classes check their arguments, each in its own way.
        raise UserError(
            f"GGUF file {file.path.name} states sizes that don't fit any model: {first_line(error)}"
        ) from error


def _common(file: GgufFile) -> dict[str, Any]:
    n_heads = int(file.require("attention.head_count"))
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise UserError(f"GGUF file {file.path.name} has no token_embd.weight")
    return {
        "vocab_size": embedding.shape[0],
        "hidden_size": int(file.require("embedding_length")),
        "intermediate_size": int(file.require("feed_forward_length")),
        "num_hidden_layers": int(file.require("block_count")),
        "num_attention_heads": n_heads,
        "num_key_value_heads": int(file.get("attention.head_count_kv", n_heads)),
        "max_position_embeddings": int(file.require("context_length")),
        "rms_norm_eps": float(file.require("attention.layer_norm_rms_epsilon")),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "bos_token_id": file.metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": _end_tokens(file),
        "pad_token_id": file.metadata.get("tokenizer.ggml.padding_token_id"),
    }


def _end_tokens(file: GgufFile) -> int | list[int] | None:
    """Every token that ends a generation in llama.cpp: end of text, of turn and of message."""
    stated = (file.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom"))
    ids = list(dict.fromkeys(int(token) for token in stated if token is not None))
    return ids if len(ids) > 1 else next(iter(ids), None)


def _head_dim(file: GgufFile) -> int:
    stated = file.get("attention.key_length") or file.get("rope.dimension_count")
    if stated:
        return int(stated)
    return int(file.require("embedding_length")) // int(file.require("attention.head_count"))


def _rope(file: GgufFile, default_theta: float) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": float(file.get("rope.freq_base", default_theta))}
    # As llama.cpp: the old key where the new one is missing, linear where no type is stated, 0 for no scaling.
    factor = float(file.get("rope.scaling.factor", file.get("rope.scale_linear", 0.0))) or 1.0
    kind = file.get("rope.scaling.type", "linear")
    if kind == "linear" and factor != 1.0:
        rope.update(rope_type="linear", factor=factor)
    elif kind not in ("none", "linear"):
        raise UserError(
            f"GGUF file {file.path.name} scales rotary positions by {kind!r}: only none and linear are supported"
        )
    return rope


def _llama(file: GgufFile) -> PretrainedConfig:
    head_dim = _head_dim(file)
    if int(file.get("rope.dimension_count", head_dim)) != head_dim:
        raise UserError(
            f"GGUF file {file.path.name} rotates only part of each head, which LlamaForCausalLM does not do"
        )
    return LlamaConfig(
        **_common(file),
        head_dim=head_dim,
        attention_bias="blk.0.attn_q.bias" in file.tensors,
        mlp_bias="blk.0.ffn_up.bias" in file.tensors,
        rope_parameters=_rope(file, 10_000.0),
    )


def _qwen2(file: GgufFile) -> PretrainedConfig:
    return Qwen2Config(**_common(file), use_sliding_window=False, rope_parameters=_rope(file, 10_000.0))


def _qwen3(file: GgufFile) -> PretrainedConfig:
    return Qwen3Config(
        **_common(file),
        head_dim=_head_dim(file),
        attention_bias="blk.0.attn_q.bias" in file.tensors,
        use_sliding_window=False,
        rope_parameters=_rope(file, 10_000.0),
    )


def _gemma3(file: GgufFile) -> PretrainedConfig:
    common, head_dim = _common(file), _head_dim(file)
    n_layers = common["num_hidden_layers"]
    # llama.cpp scales the 27B model's queries by the width of a head's share, all others by the head's size.
    scalar = common["hidden_size"] // common["num_attention_heads"] if n_layers == _GEMMA3_27B_LAYERS else head_dim
    local = float(file.get("rope.freq_base_swa", _GEMMA3_LOCAL_THETA))
    pattern = int(file.get("attention.sliding_window_pattern", _GEMMA3_PATTERN))
    return Gemma3TextConfig(
        **common,
        head_dim=head_dim,
        query_pre_attn_scalar=scalar,
        sliding_window=int(file.require("attention.sliding_window")),
        layer_types=[
            "full_attention" if (layer + 1) % pattern == 0 else "sliding_attention" for layer in range(n_layers)
        ],
        rope_parameters={
            "full_attention": _rope(file, 1_000_000.0),
            "sliding_attention": {"rope_type": "default", "rope_theta": local},
        },
    )


ARCHITECTURES: dict[str, Callable[[GgufFile], PretrainedConfig]] = {
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma3": _gemma3,
}
"""Supported architectures, by llama.cpp's name."""
