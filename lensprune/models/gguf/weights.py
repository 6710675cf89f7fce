"""Dequantised weights of a GGUF file under Hugging Face's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGMLQuantizationType, dequantize, get_tensor_name_map
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from lensprune.errors import UserError
from lensprune.models.gguf.header import GgufFile, GgufTensor

__all__ = ["QUANTIZATIONS", "gguf_model"]

QUANTIZATIONS = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
"""Tensor types that are read; a Q4_K_M file mixes Q4_K and Q6_K."""

_FREQUENCY_FACTORS = "rope_freqs.weight"


def gguf_model(
    file: GgufFile, config: PretrainedConfig, dtype: torch.dtype, placement: Mapping[str, Any] | None = None
) -> PreTrainedModel:
    """The model of `file`, dequantised to `dtype`.

    Args:
        placement: arguments of `from_pretrained` that spread the model over devices.

    Raises:
        UserError: a tensor is missing, superfluous, of another shape, or of a type that is not read.
    """
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config)
    model_class = type(skeleton)
    shapes = {name: tuple(tensor.shape) for name, tensor in skeleton.state_dict().items()}
    if config.tie_word_embeddings:
        shapes.pop("lm_head.weight", None)
    architecture = next(arch for arch, name in MODEL_ARCH_NAMES.items() if name == file.architecture)
    names = _gguf_names(architecture, config.num_hidden_layers, shapes)
    unknown = sorted(set(file.tensors) - set(names.values()) - {_FREQUENCY_FACTORS})
    if unknown:
        raise UserError(
            f"GGUF file {file.path.name} holds {unknown[0]!r}, which {model_class.__name__} has no place for"
        )
    state = {name: _read(file, names[name], shape, name, config).to(dtype) for name, shape in shapes.items()}
    model, info = model_class.from_pretrained(
        None,
        config=config,
        state_dict=state,
        dtype=dtype,
        attn_implementation="eager",
        output_loading_info=True,
        **(placement or {}),
    )
    problems = {key: sorted(map(str, value)) for key, value in info.items() if value and "key" in key}
    if problems:
        raise UserError(f"GGUF file {file.path.name} does not fit {model_class.__name__}: {problems}")
    if _FREQUENCY_FACTORS in file.tensors:
        _apply_frequency_factors(file, model)
    return model.eval()


def _gguf_names(architecture: MODEL_ARCH, n_layers: int, shapes: dict[str, tuple[int, ...]]) -> dict[str, str]:
    table = get_tensor_name_map(architecture, n_layers)
    names = {}
    for name in shapes:
        mapped = table.get_name(name, try_suffixes=(".weight", ".bias"))
        if mapped is None:
            raise UserError(f"the gguf package has no name for the parameter {name}")
        names[name] = mapped
    return names


def _read(file: GgufFile, gguf_name: str, shape: tuple[int, ...], name: str, config: PretrainedConfig) -> torch.Tensor:
    tensor = file.tensors.get(gguf_name)
    if tensor is None:
        raise UserError(f"GGUF file {file.path.name} lacks the tensor {gguf_name!r}")
    if tensor.shape != shape:
        raise UserError(
            f"GGUF file {file.path.name}: tensor {gguf_name!r} has shape {list(tensor.shape)}, expected {list(shape)}"
        )
    values = _dequantised(file, tensor)
    if config.model_type == "llama":
        if ".q_proj." in name:
            values = _unpermute(values, config.num_attention_heads)
        elif ".k_proj." in name:
            values = _unpermute(values, config.num_key_value_heads)
    if config.model_type == "gemma3_text" and name.endswith("norm.weight"):
        # llama.cpp multiplies by the stored value, Gemma3RMSNorm by one plus it.
        values = values - 1.0
    # Unquantised tensors are views of the file, which must stay as it is.
    return torch.from_numpy(np.require(values, dtype=np.float32, requirements=["C", "W"]))


def _dequantised(file: GgufFile, tensor: GgufTensor) -> np.ndarray:
    if tensor.kind.name not in QUANTIZATIONS:
        raise UserError(
            f"GGUF file {file.path.name}: tensor {tensor.name!r} has type {tensor.kind.name}: expected one of "
            f"{', '.join(QUANTIZATIONS)}"
        )
    raw = np.memmap(file.path, dtype=np.uint8, mode="r", offset=tensor.start, shape=(tensor.n_bytes,))
    if tensor.kind == GGMLQuantizationType.F32:
        return raw.view(np.float32).reshape(tensor.shape)
    if tensor.kind == GGMLQuantizationType.F16:
        return raw.view(np.float16).astype(np.float32).reshape(tensor.shape)
    rows = raw.reshape(*tensor.shape[:-1], -1)
    return dequantize(rows, tensor.kind).reshape(tensor.shape)


def _unpermute(values: np.ndarray, n_heads: int) -> np.ndarray:
    """llama.cpp keeps the two halves of each rotary pair side by side, Hugging Face in separate halves of the head."""
    half = values.shape[0] // n_heads // 2
    return values.reshape(n_heads, half, 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def _apply_frequency_factors(file: GgufFile, model: PreTrainedModel) -> None:
    """Llama 3.1's rotary scaling, which a GGUF file states as one divisor per frequency."""
    factors = torch.from_numpy(np.array(_dequantised(file, file.tensors[_FREQUENCY_FACTORS])))
    rotary = model.get_submodule("model.rotary_emb")
    inverse = rotary.get_buffer("inv_freq")
    if factors.shape != inverse.shape:
        raise UserError(
            f"GGUF file {file.path.name}: {_FREQUENCY_FACTORS} has {factors.numel()} values, expected {inverse.numel()}"
        )
    inverse.div_(factors.to(inverse))
