"""GGUF files: the logits are those of the dequantised weights, and the tokenizer is the one that was written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, RopeScalingType

from lensprune.engine.scoring import eos_token_ids
from lensprune.models import as_hooked_model, load_model
from tests.helpers.families import byte_tokenizer
from tests.helpers.gguf_files import ARCHITECTURES, deinterleave, interleave, write_gguf
from tests.helpers.tolerances import assert_tensors_agree

KINDS = ("F16", "Q8_0", "Q4_0", "Q4_1")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ARCHITECTURES)
def test_logits_are_those_of_the_dequantised_weights(family: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"{family}-{kind}.gguf"
    expected_model = write_gguf(path, family, GGMLQuantizationType[kind])
    model = as_hooked_model(load_model(path, device="cpu"))
    ids = torch.randint(4, 260, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = expected_model(input_ids=ids).logits
        found = model.forward(ids, torch.ones_like(ids), torch.arange(12).expand(2, 12))
    assert float(expected.std()) > 0.01
    assert_tensors_agree(found, expected, torch.float32)
    assert model.facts.source == f"gguf:{path.name}"
    assert (model.facts.n_heads, model.facts.n_key_value_heads, model.facts.d_head) == (4, 2, 16)


def test_quantisation_loses_what_the_type_says(tmp_path: Path) -> None:
    exact = write_gguf(tmp_path / "a.gguf", "llama", GGMLQuantizationType.F32).get_input_embeddings().weight
    losses = []
    for kind in ("F16", "Q8_0", "Q4_1"):
        rounded = write_gguf(tmp_path / f"{kind}.gguf", "llama", GGMLQuantizationType[kind])
        losses.append(float((rounded.get_input_embeddings().weight - exact).detach().abs().max()))
    assert 0 < losses[0] < losses[1] < losses[2]


def test_the_tokenizer_is_the_one_that_was_written(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, "llama", GGMLQuantizationType.F16)
    found, expected = as_hooked_model(load_model(path, device="cpu")).tokenizer, byte_tokenizer()
    for text in ("The cat sat.", " two  spaces\n\ttab", "7 × 8 = 56", "naïve 日本語", "a<eos>b"):
        ids = found.encode(text)
        assert ids == expected.encode(text)
        assert found.decode(ids) == text
    assert (found.bos_token_id, found.eos_token_id, found.pad_token_id) == (1, 2, 3)


def test_row_order_of_rotary_projections() -> None:
    rows = np.arange(8)
    assert interleave(rows, 2).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert deinterleave(interleave(rows, 2), 2).tolist() == rows.tolist()


SCALINGS: dict[str, tuple[Callable[[GGUFWriter], object], float]] = {
    "without a type": (lambda writer: writer.add_rope_scaling_factor(4.0), 4.0),
    "old key": (lambda writer: writer.add_float32("llama.rope.scale_linear", 4.0), 4.0),
    "new key first": (
        lambda writer: (
            writer.add_rope_scaling_factor(4.0),
            writer.add_float32("llama.rope.scale_linear", 2.0),
        ),
        4.0,
    ),
    "none": (
        lambda writer: (writer.add_rope_scaling_type(RopeScalingType.NONE), writer.add_rope_scaling_factor(4.0)),
        1.0,
    ),
    "zero": (lambda writer: writer.add_rope_scaling_factor(0.0), 1.0),
}


@pytest.mark.parametrize("how", SCALINGS)
def test_rotary_scaling_is_llama_cpps(how: str, tmp_path: Path) -> None:
    """llama.cpp: linear where no type is stated, the old key where the new one is missing, 0 for no scaling."""
    metadata, factor = SCALINGS[how]
    expected = write_gguf(tmp_path / "m.gguf", "llama", GGMLQuantizationType.F32, metadata=metadata)
    ids = torch.arange(10, 40)[None]
    with torch.no_grad():
        plain = expected(input_ids=ids).logits
        expected.model.rotary_emb.inv_freq /= factor
        scaled = expected(input_ids=ids).logits
        found = load_model(tmp_path / "m.gguf", device="cpu").original_model(input_ids=ids).logits
    assert (factor == 1.0) == torch.equal(plain, scaled)
    if factor != 1.0:
        assert float((plain - scaled).abs().max()) > 0.01
    assert_tensors_agree(found, scaled, torch.float32)


def test_end_of_turn_and_end_of_message_end_a_generation(tmp_path: Path) -> None:
    def metadata(writer: GGUFWriter) -> None:
        writer.add_eot_token_id(40)
        writer.add_eom_token_id(41)

    write_gguf(tmp_path / "m.gguf", "llama", GGMLQuantizationType.F32, metadata=metadata)
    write_gguf(tmp_path / "plain.gguf", "llama", GGMLQuantizationType.F32)
    plain = eos_token_ids(as_hooked_model(load_model(tmp_path / "plain.gguf", device="cpu")))
    assert len(plain) == 1
    assert eos_token_ids(as_hooked_model(load_model(tmp_path / "m.gguf", device="cpu"))) == plain | {40, 41}
