"""A local folder of every family: the logits are Hugging Face's, padded or not, cached or not."""

from __future__ import annotations

import json
from functools import cache
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

from lensprune.models import BridgeModel, as_hooked_model, load_model
from tests.helpers.families import CONFIGS, FAMILIES, save_folder
from tests.helpers.tiny_models import folder, tiny
from tests.helpers.tolerances import assert_tensors_agree

LONG, SHORT = 12, 7
FUSED = ("phi3", "gpt2", "gpt_neox")


def loaded(family: str) -> BridgeModel:
    model = tiny(family)
    assert isinstance(model, BridgeModel)
    return model


@cache
def plain(family: str) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder(family), dtype=torch.float32, attn_implementation="eager").eval()


def tokens(length: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(4, 260, (1, length), generator=generator)


def forward(model: BridgeModel, ids: torch.Tensor, cache: DynamicCache | None = None, seen: int = 0) -> torch.Tensor:
    positions = torch.arange(seen, seen + ids.shape[1]).expand(len(ids), -1)
    mask = torch.ones(len(ids), seen + ids.shape[1], dtype=torch.long)
    with torch.no_grad():
        return model.forward(ids, mask, positions, cache=cache)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers(family: str) -> None:
    ids = tokens(LONG, 0)
    with torch.no_grad():
        expected = plain(family)(input_ids=ids).logits
    found = forward(loaded(family), ids)
    assert float(expected.std()) > 0.01
    assert_tensors_agree(found, expected, torch.float32)


@pytest.mark.parametrize("family", FAMILIES)
def test_left_padding_leaves_a_row_as_it_is(family: str) -> None:
    model, long, short = loaded(family), tokens(LONG, 1), tokens(SHORT, 2)
    pad = LONG - SHORT
    ids = torch.cat([long, torch.cat([torch.full((1, pad), 3), short], dim=1)])
    mask = torch.ones_like(ids)
    mask[1, :pad] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        found = model.forward(ids, mask, positions)
    assert_tensors_agree(found[:1], forward(model, long), torch.float32)
    assert_tensors_agree(found[1:, pad:], forward(model, short), torch.float32)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cache_leaves_the_logits_as_they_are(family: str) -> None:
    model, ids = loaded(family), tokens(LONG, 3)
    kept = model.new_cache()
    parts = [forward(model, ids[:, :SHORT], kept)]
    parts += [forward(model, ids[:, at : at + 1], kept, seen=at) for at in range(SHORT, LONG)]
    assert kept.get_seq_length() == LONG
    assert_tensors_agree(torch.cat(parts, dim=1), forward(model, ids), torch.float32)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_to_keep_gives_the_last_positions(family: str) -> None:
    model, ids = loaded(family), tokens(LONG, 4)
    with torch.no_grad():
        found = model.forward(ids, torch.ones_like(ids), torch.arange(LONG)[None], logits_to_keep=2)
    assert found.shape == (1, 2, model.facts.d_vocab)
    assert_tensors_agree(found, forward(model, ids)[:, -2:], torch.float32)


@pytest.mark.parametrize("family", FAMILIES)
def test_raw_model_is_the_same_weights_without_hooks(family: str) -> None:
    model, ids = loaded(family), tokens(LONG, 5)
    raw = model.raw_model
    assert raw is not None
    bridged = {parameter.data_ptr() for parameter in model.module.original_model.parameters()}
    shared = {parameter.data_ptr() for parameter in raw.parameters()}
    assert shared <= bridged
    # TransformerLens adds split copies of projections that an architecture keeps fused; until 4.0 of others too.
    if tuple(map(int, version("transformer-lens").split(".")[:2])) >= (4, 3):
        assert (shared != bridged) == (family in FUSED)

    def double(activation: torch.Tensor, hook: object) -> torch.Tensor:
        return activation * 2

    with torch.no_grad(), model.hooks([("blocks.0.hook_resid_post", double)]):
        raw_logits = raw(input_ids=ids).logits
        hooked = forward(model, ids)
    assert_tensors_agree(raw_logits, forward(model, ids), torch.float32)
    assert float((hooked - raw_logits).abs().max()) > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_facts_follow_the_configuration(family: str) -> None:
    facts, config = loaded(family).facts, CONFIGS[family]()
    groups = getattr(config, "num_key_value_heads", config.num_attention_heads)
    assert (facts.n_layers, facts.n_heads, facts.n_key_value_heads) == (3, 4, groups)
    assert (facts.d_head, facts.d_model, facts.d_vocab, facts.n_ctx) == (8, 32, 260, 512)
    assert (facts.name, facts.source) == (family, f"folder:{family}")
    assert (facts.dtype, facts.device, facts.bos_policy) == ("float32", "cpu", "tokenizer")
    assert facts.architecture == type(plain(family)).__name__
    assert facts.parallel_attn_mlp == (family == "gpt_neox")


def test_the_weights_hash_tells_weights_apart(tmp_path: Path) -> None:
    again = as_hooked_model(load_model(save_folder("llama", tmp_path / "again"), device="cpu")).facts
    other = as_hooked_model(load_model(save_folder("llama", tmp_path / "other", seed=1), device="cpu")).facts
    assert again.weights_hash == loaded("llama").facts.weights_hash
    assert other.weights_hash != again.weights_hash
    assert other.tokenizer_hash == again.tokenizer_hash


def test_the_config_hash_tells_models_with_equal_weights_apart(tmp_path: Path) -> None:
    again = as_hooked_model(load_model(save_folder("llama", tmp_path / "again"), device="cpu")).facts
    other_folder = save_folder("llama", tmp_path / "other")
    path = other_folder / "config.json"
    config = json.loads(path.read_text())
    config["rms_norm_eps"] *= 10
    path.write_text(json.dumps(config))
    other = as_hooked_model(load_model(other_folder, device="cpu")).facts
    assert again.config_hash == loaded("llama").facts.config_hash
    assert other.weights_hash == again.weights_hash
    assert other.config_hash != again.config_hash
    rounded = as_hooked_model(load_model(tmp_path / "again", device="cpu", dtype="bfloat16")).facts
    assert rounded.config_hash == again.config_hash


def test_dtype_is_the_one_asked_for() -> None:
    model = as_hooked_model(load_model(folder("llama"), dtype="bfloat16", device="cpu"))
    assert model.facts.dtype == "bfloat16"
    assert {parameter.dtype for parameter in model.module.original_model.parameters()} == {torch.bfloat16}
