"""A model of any size without its weights: what a sweep costs does not depend on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from lensprune.models.boot import boot_bridge

__all__ = ["has_no_weights", "random_bridge", "random_model"]


def has_no_weights(model: str) -> bool:
    """Whether `model` is a folder with a configuration and a tokenizer alone."""
    folder = Path(model)
    return (folder / "config.json").is_file() and not any(folder.glob("*.safetensors"))


def random_model(folder: str, dtype: str, device: str, attention: str) -> tuple[Any, PreTrainedTokenizerBase]:
    """Made on the device itself, where a large one takes a second."""
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(folder)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype), attn_implementation=attention)
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def random_bridge(folder: str, dtype: str, device: str) -> Any:
    model, tokenizer = random_model(folder, dtype, device, "eager")
    return boot_bridge(
        model, tokenizer, name=folder, source="random weights", bos="tokenizer", self_check=False, weights_hash="0" * 64
    )
