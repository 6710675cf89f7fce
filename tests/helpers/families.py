"""Tiny random models, one per architecture family, with a byte-level tokenizer that reads any text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

SPECIAL_TOKENS = ["<unk>", "<bos>", "<eos>", "<pad>"]
VOCAB_SIZE = len(SPECIAL_TOKENS) + 256

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
}

CONFIGS: dict[str, Callable[[], transformers.PretrainedConfig]] = {
    "llama": lambda: transformers.LlamaConfig(**_COMMON),
    "qwen2": lambda: transformers.Qwen2Config(**_COMMON),
    "qwen3": lambda: transformers.Qwen3Config(**_COMMON),
    "gemma2": lambda: transformers.Gemma2Config(**_COMMON, sliding_window=8, query_pre_attn_scalar=8),
    "gemma3": lambda: transformers.Gemma3TextConfig(**_COMMON, sliding_window=8, query_pre_attn_scalar=8),
    "mistral": lambda: transformers.MistralConfig(**_COMMON, sliding_window=8),
    "phi3": lambda: transformers.Phi3Config(**_COMMON),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=VOCAB_SIZE, n_embd=32, n_layer=3, n_head=4, n_positions=512, bos_token_id=1, eos_token_id=2
    ),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "mixtral": lambda: transformers.MixtralConfig(**_COMMON, num_local_experts=4),
}
FAMILIES = tuple(CONFIGS)
_NO_HEAD_DIM: dict[str, Any] = {key: value for key, value in _COMMON.items() if key != "head_dim"}
_GRANITE: dict[str, Any] = {
    **_NO_HEAD_DIM,
    "residual_multiplier": 0.5,
    "logits_scaling": 3.0,
    "embedding_multiplier": 2.0,
}
SCALED_CONFIGS: dict[str, Callable[[], transformers.PretrainedConfig]] = {
    "cohere": lambda: transformers.CohereConfig(**_NO_HEAD_DIM, logit_scale=0.3),
    "cohere2": lambda: transformers.Cohere2Config(**_NO_HEAD_DIM, logit_scale=0.3, sliding_window=8),
    "granite": lambda: transformers.GraniteConfig(**_GRANITE),
    "granitemoe": lambda: transformers.GraniteMoeConfig(**_GRANITE, num_local_experts=4, num_experts_per_tok=2),
}
"""Families that multiply their logits, or what their branches add to the residual stream."""

POST_NORM_CONFIGS: dict[str, Callable[[], transformers.PretrainedConfig]] = {
    "olmo2": lambda: transformers.Olmo2Config(**_NO_HEAD_DIM),
}
"""A family whose branches have norms behind them only."""

_AFMOE: dict[str, Any] = {**_COMMON, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
GATED_CONFIGS: dict[str, Callable[[], transformers.PretrainedConfig]] = {
    "bitnet": lambda: transformers.BitNetConfig(**_NO_HEAD_DIM),
    "laguna": lambda: transformers.LagunaConfig(
        **_AFMOE, shared_expert_intermediate_size=16, sliding_window=8, num_attention_heads_per_layer=[4] * 3
    ),
    "laguna_elementwise": lambda: transformers.LagunaConfig(
        **_AFMOE,
        shared_expert_intermediate_size=16,
        sliding_window=8,
        num_attention_heads_per_layer=[4] * 3,
        gating="per-element",
    ),
    "afmoe": lambda: transformers.AfmoeConfig(**_AFMOE, sliding_window=8, num_shared_experts=1),
}
"""Families with a norm (BitNet) or a gate between attention's result and its output projection."""

SCALED_FAMILIES = tuple(SCALED_CONFIGS)
_SPECIAL: dict[str, Any] = {"vocab_size": VOCAB_SIZE, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
OTHER_CONFIGS: dict[str, Callable[[], transformers.PretrainedConfig]] = {
    "gpt_neo": lambda: transformers.GPTNeoConfig(
        **_SPECIAL,
        hidden_size=32,
        num_layers=6,
        num_heads=4,
        max_position_embeddings=512,
        attention_types=[[["global", "local"], 3]],
        window_size=8,
    ),
    "falcon": lambda: transformers.FalconConfig(
        **_SPECIAL, hidden_size=32, num_hidden_layers=6, num_attention_heads=4, multi_query=True, parallel_attn=True
    ),
    "bloom": lambda: transformers.BloomConfig(**_SPECIAL, hidden_size=32, n_layer=6, n_head=4),
    "gpt_oss": lambda: transformers.GptOssConfig(
        **_COMMON, num_local_experts=4, num_experts_per_tok=2, sliding_window=8
    ),
    "qwen2_moe": lambda: transformers.Qwen2MoeConfig(
        **_NO_HEAD_DIM,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        use_sliding_window=True,
        # Longer than the forked executor's probe.
        sliding_window=40,
        layer_types=["full_attention", "sliding_attention", "full_attention"],
    ),
    "opt": lambda: transformers.OPTConfig(
        **_SPECIAL,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        ffn_dim=48,
        max_position_embeddings=512,
        word_embed_proj_dim=32,
    ),
    "xglm": lambda: transformers.XGLMConfig(
        **_SPECIAL, d_model=32, num_layers=3, attention_heads=4, ffn_dim=48, max_position_embeddings=512
    ),
    "mpt": lambda: transformers.MptConfig(vocab_size=VOCAB_SIZE, d_model=32, n_layers=3, n_heads=4, max_seq_len=512),
    "falcon_h1": lambda: transformers.FalconH1Config(
        **_COMMON, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8
    ),
    "llama4": lambda: transformers.Llama4TextConfig(
        **_COMMON, intermediate_size_mlp=48, num_local_experts=2, floor_scale=8, no_rope_layers=[1, 0, 1]
    ),
    "dynamic_rope": lambda: transformers.LlamaConfig(
        **{**_COMMON, "max_position_embeddings": 32},
        rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
    ),
    "long_rope": lambda: transformers.Phi3Config(
        **_NO_HEAD_DIM,
        original_max_position_embeddings=32,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "original_max_position_embeddings": 32,
            "short_factor": [1.0] * 4,
            "long_factor": [2.0, 3.0, 4.0, 5.0],
            "factor": 16.0,
        },
    ),
}
"""Models that the forked executor cannot run, or not on all requests."""

LEFT_TO_HOOKED: dict[str, tuple[str, str]] = {
    "gpt_neo": ("GPT-Neo", "use the attention mask themselves"),
    "falcon": ("Falcon", "use the attention mask themselves"),
    "bloom": ("Bloom", "no single module computes"),
    "mpt": ("MPT", "no single module computes"),
    "opt": ("OPT", "no single module computes"),
    "xglm": ("XGLM", "no single module computes"),
    "granite": ("Granite", "no single module computes"),
    "granitemoe": ("GraniteMoE", "no single module computes"),
    "falcon_h1": ("Falcon-H1", "returns more than the residual"),
    "gpt_oss": ("gpt-oss", "layer 0 has attention sinks"),
    "llama4": ("Llama 4", "scales queries by their index in the row"),
    "qwen2_moe": ("Qwen2-MoE with a sliding window", "layer 1 attends to 40 tokens, but"),
}
"""Models that the forked executor leaves to the hooked one as a whole: names (docs/reference/models.md) and reasons."""
CORE_FAMILIES = ("llama", "gemma3", "gpt2")


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte; no token is added by itself."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(SPECIAL_TOKENS + alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    )


def hf_model(family: str, seed: int = 0, scale: float = 4.0, **overrides: Any) -> PreTrainedModel:
    """A random fp32 model; weights are scaled up so that ablations move the logits visibly."""
    torch.manual_seed(seed)
    config = (CONFIGS | SCALED_CONFIGS | POST_NORM_CONFIGS | GATED_CONFIGS | OTHER_CONFIGS)[family]()
    for key, value in overrides.items():
        setattr(config, key, value)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(scale)
            elif "bias" in name:
                parameter.normal_(0, 0.1)
    return model


def save_folder(family: str, folder: Path, seed: int = 0, **overrides: Any) -> Path:
    """Write model and tokenizer in Hugging Face's layout, as `load_model` reads them."""
    model = hf_model(family, seed, **overrides)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder
