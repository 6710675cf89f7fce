"""What every source passes to `load_model`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["LoadOptions", "LoadedModel"]


@dataclass(frozen=True)
class LoadOptions:
    """How weights are placed, and a tokenizer that replaces the model's.

    `n_devices` is set only for several GPUs; `device` counts otherwise.
    """

    dtype: torch.dtype
    device: torch.device
    revision: str | None = None
    n_devices: int | None = None
    tokenizer: PreTrainedTokenizerBase | None = None


@dataclass(frozen=True)
class LoadedModel:
    """A plain Hugging Face model, its original tokenizer, and where both come from.

    `weights_hash` is set when the hash of exactly these weights is known already.
    """

    hf_model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    source: str
    weights_hash: str | None = None
