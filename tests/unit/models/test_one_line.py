"""Architectures that TransformerLens wraps in another form, or not at all, end in one line that names them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, PretrainedConfig

from lensprune.errors import UserError
from lensprune.models import as_hooked_model, load_model
from tests.helpers.families import byte_tokenizer
from tests.helpers.tolerances import assert_tensors_agree

_SPECIAL: dict[str, Any] = {"vocab_size": 260, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
_COMMON: dict[str, Any] = {
    **_SPECIAL,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
_LINEAR: dict[str, Any] = {
    "head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}
_GPT: dict[str, Any] = {**_SPECIAL, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}

REFUSED: dict[str, tuple[Callable[[], PretrainedConfig], str]] = {
    "qwen3_next": (
        lambda: transformers.Qwen3NextConfig(
            **_COMMON,
            **_LINEAR,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=16,
            shared_expert_intermediate_size=16,
        ),
        r"it lacks blocks\.0\.hook_attn_out, blocks\.0\.attn\.hook_z",
    ),
    "qwen3_5": (lambda: transformers.Qwen3_5TextConfig(**_COMMON, **_LINEAR), r"it lacks blocks\.0\.hook_attn_out"),
    "nemotron_h": (
        lambda: transformers.NemotronHConfig(
            **_COMMON,
            layers_block_type=["mamba", "attention", "mlp"],
            mamba_num_heads=4,
            mamba_head_dim=16,
            ssm_state_size=8,
            n_groups=2,
        ),
        r"it lacks blocks\.0\.hook_attn_out",
    ),
    "lfm2": (
        lambda: transformers.Lfm2Config(**_COMMON, layer_types=["conv", "full_attention", "conv"]),
        r"it lacks blocks\.0\.hook_attn_out",
    ),
    "mamba": (
        lambda: transformers.MambaConfig(vocab_size=260, hidden_size=32, num_hidden_layers=2, state_size=8),
        r"it lacks blocks\.0\.hook_attn_out",
    ),
    "phi_qk_layernorm": (lambda: transformers.PhiConfig(**_COMMON, qk_layernorm=True), "q_layernorm"),
    "codegen": (lambda: transformers.CodeGenConfig(**_GPT, rotary_dim=4), "cannot wrap or run it"),
    "falcon_new_decoder": (
        lambda: transformers.FalconConfig(
            **_SPECIAL,
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_kv_heads=2,
            new_decoder_architecture=True,
        ),
        "cannot wrap or run it",
    ),
    "gpt_bigcode_multi_head": (lambda: transformers.GPTBigCodeConfig(**_GPT, multi_query=False), "multi_query=True"),
}


def save(config: PretrainedConfig, folder: Path) -> Path:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_wrapped_is_one_line(name: str, tmp_path: Path) -> None:
    build, reason = REFUSED[name]
    folder = save(build(), tmp_path / name)
    with pytest.raises(UserError, match=f"architecture .* of {name} is not supported: .*{reason}") as caught:
        load_model(folder, device="cpu")
    assert "\n" not in str(caught.value)


def test_a_cache_that_attention_fills_by_itself_is_left_alone(tmp_path: Path) -> None:
    """GPT-J's attention is transformers' own, which takes the cache under its new name only."""
    folder = save(transformers.GPTJConfig(**_GPT, rotary_dim=4), tmp_path / "gptj")
    model = as_hooked_model(load_model(folder, device="cpu"))
    plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    ids, cache = torch.arange(10, 20)[None], model.new_cache()
    positions = torch.arange(10)[None]
    with torch.no_grad():
        expected = plain(input_ids=ids).logits
        steps = [
            model.forward(ids[:, t : t + 1], torch.ones(1, t + 1), positions[:, t : t + 1], cache=cache)
            for t in range(10)
        ]
    assert cache.get_seq_length() == 10
    assert float(expected.std()) > 0.01
    assert_tensors_agree(torch.cat(steps, dim=1), expected, torch.float32)
