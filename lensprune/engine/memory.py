"""Budgets of the forked executor from an amount of memory."""

from __future__ import annotations

import re
from dataclasses import replace

import torch

from lensprune.engine.limits import DecodeLimits
from lensprune.errors import UserError
from lensprune.models.base import ModelFacts

__all__ = ["budgets", "gpu_limits", "limits_for_memory", "parse_memory"]

UNEMBED_ROWS = 256
"""Positions unembedded at once; bounds the logits held to this many rows of the vocabulary."""

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}

_VALUES_PER_TOKEN = 40
"""Most values that one layer's pass holds per token, in units of d_model: residuals before and after,
queries, keys, values and heads' results in fp32, the MLP's three intermediate ones."""

_SMALLEST_SHOWN = 10**7
"""Smaller amounts are shown in bytes, since a unit may have been forgotten."""

_LOGIT_COPIES = 3
"""Logits, their fp32 copy, and the mask of finite ones."""

MAX_ROWS, MAX_TOKENS = 1024, 32768
"""Above this, a larger batch is no faster."""

MAX_GPU_ROWS = 4096
"""The same on a GPU, where a decode step takes as long for few rows as for many."""

_GPU_SHARE = 0.8
"""Share of a GPU's free memory to use; the rest is for other processes and for fragmentation."""


def parse_memory(text: str) -> int:
    """Bytes of ``"4GB"``, ``"512 MiB"``, ``"1.5g"`` or ``"1000000"``.

    Raises:
        UserError: not a positive number with one of these units.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*([KMGT]I?|)B?\s*", text, re.IGNORECASE)
    size = 0 if match is None else int(float(match[1]) * _UNITS[match[2].upper()])
    if size <= 0:
        raise UserError(f"cannot read an amount of memory from {text!r}: write it like 4GB, 512MB or 1.5GiB")
    return size


def limits_for_memory(facts: ModelFacts, memory: int) -> DecodeLimits:
    """Budgets that keep what a sweep adds to the model's weights within about `memory` bytes.

    Half of what remains after the logits goes to keys and values, half to the activations of one flat row.

    Raises:
        UserError: `memory` is too small for the logits of one batch; the message says how much is needed.
    """
    itemsize = getattr(torch, facts.dtype).itemsize
    logits = UNEMBED_ROWS * facts.d_vocab * 4 * _LOGIT_COPIES
    per_token = _VALUES_PER_TOKEN * facts.d_model * max(itemsize, 4)
    least = logits + 2 * 128 * per_token
    if memory < least:
        raise UserError(
            f"{f'{memory / 1e9:.2g} GB' if memory >= _SMALLEST_SHOWN else f'{memory} bytes'} is too little for "
            f"{facts.name}: it needs {least / 1e9:.2g} GB or more besides its weights"
        )
    half = (memory - logits) // 2
    tokens = half // per_token
    most_rows = MAX_GPU_ROWS if torch.device(facts.device).type == "cuda" else MAX_ROWS
    return DecodeLimits(rows=min(tokens, most_rows), kv_bytes=half, tokens=min(tokens, MAX_TOKENS))


def gpu_limits(facts: ModelFacts, weights: int = 0) -> DecodeLimits | None:
    """Budgets from the free memory of the model's GPU; ``None`` for a model that is not on a GPU of this machine.

    Args:
        weights: bytes of the model's weights that are not on the GPU yet.

    Raises:
        UserError: the GPU has too little free memory.
    """
    device = torch.device(facts.device)
    if device.type != "cuda" or (device.index or 0) >= torch.cuda.device_count():
        return None
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return limits_for_memory(facts, int(_GPU_SHARE * (free + unused - weights)))


def budgets(facts: ModelFacts, max_tokens: int | None, memory: str | None) -> DecodeLimits | int | None:
    """Budgets as requested: all of them from an amount of memory, or tokens per batch alone, or ``None`` for neither.

    Raises:
        UserError: as `parse_memory` and `limits_for_memory`.
    """
    if memory is None:
        return max_tokens
    limits = limits_for_memory(facts, parse_memory(memory))
    return limits if max_tokens is None else replace(limits, tokens=max_tokens)
