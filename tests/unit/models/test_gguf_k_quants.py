"""The mixed types of a Q4_K_M file. The gguf package cannot quantise to them, so the blocks are random bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from lensprune.errors import UserError
from lensprune.models.gguf.config import gguf_config
from lensprune.models.gguf.header import read_gguf
from lensprune.models.gguf.weights import gguf_model
from tests.helpers import gguf_files
from tests.helpers.tolerances import assert_tensors_agree

WIDTHS = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64}


def random_blocks(values: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:
    """Bytes of the right number, with half-precision block scales small enough for a working model."""
    block, n_bytes = GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(values.size)
    raw = rng.integers(0, 256, size=(values.size // block, n_bytes), dtype=np.uint8)
    scale = np.frombuffer(np.float16(0.0005).tobytes(), dtype=np.uint8)
    # Q4_K starts with its scale and minimum, Q6_K ends with its scale.
    for at in (0, 2) if kind is GGMLQuantizationType.Q4_K else (n_bytes - 2,):
        raw[:, at : at + 2] = scale
    return raw.reshape(values.shape[0], -1)


@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K"])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_logits_are_those_of_the_dequantised_blocks(
    family: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_files, "WIDTHS", WIDTHS)
    monkeypatch.setattr(gguf_files, "quantize", random_blocks)
    expected_model = gguf_files.write_gguf(tmp_path / "k.gguf", family, GGMLQuantizationType[kind])
    file = read_gguf(tmp_path / "k.gguf")
    assert {tensor.kind.name for tensor in file.tensors.values()} == {kind, "F32"}
    model = gguf_model(file, gguf_config(file), torch.float32)
    ids = torch.arange(4, 24)[None]
    with torch.no_grad():
        expected, found = expected_model(input_ids=ids).logits, model(input_ids=ids).logits
    assert float(expected.std()) > 0.01
    assert_tensors_agree(found, expected, torch.float32)


def test_a_type_that_is_not_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_files, "WIDTHS", WIDTHS)
    monkeypatch.setattr(gguf_files, "quantize", random_blocks)
    monkeypatch.setattr(gguf_files, "dequantize", lambda raw, kind: np.zeros((len(raw), 256), dtype=np.float32))
    gguf_files.write_gguf(tmp_path / "k.gguf", "llama", GGMLQuantizationType.IQ4_XS)
    file = read_gguf(tmp_path / "k.gguf")
    with pytest.raises(UserError, match=r"has type IQ4_XS: expected one of F32, F16"):
        gguf_model(file, gguf_config(file), torch.float32)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    gguf_files.write_gguf(tmp_path / "m.gguf", "llama", GGMLQuantizationType.F16)
    file = read_gguf(tmp_path / "m.gguf")
    del file.tensors["blk.1.ffn_up.weight"]
    with pytest.raises(UserError, match=r"lacks the tensor 'blk\.1\.ffn_up\.weight'"):
        gguf_model(file, gguf_config(file), torch.float32)


def test_llama_3_frequency_factors_divide_the_rotary_frequencies(tmp_path: Path) -> None:
    expected_model = gguf_files.write_gguf(tmp_path / "r.gguf", "llama", GGMLQuantizationType.F32, rope_freqs=True)
    file = read_gguf(tmp_path / "r.gguf")
    model = gguf_model(file, gguf_config(file), torch.float32)
    plain = expected_model.model.rotary_emb.inv_freq
    found = model.get_submodule("model.rotary_emb").inv_freq
    torch.testing.assert_close(found * torch.linspace(1, 8, len(plain)), plain)
    ids = torch.arange(4, 44)[None]
    with torch.no_grad():
        unscaled = expected_model(input_ids=ids).logits
        expected_model.model.rotary_emb.inv_freq.div_(torch.linspace(1, 8, len(plain)))
        expected, scaled = expected_model(input_ids=ids).logits, model(input_ids=ids).logits
    assert_tensors_agree(scaled, expected, torch.float32)
    assert float((scaled - unscaled).abs().max()) > 1e-4
