"""Greedy decoding under a generation config, against transformers' own `generate`; the rest is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from lensprune.ablation.enumeration import each_mlp
from lensprune.ablation.variants import CLEAN, Variant
from lensprune.engine import greedy, make_executor
from lensprune.engine.greedy import GreedyRules
from lensprune.errors import UserError
from lensprune.models import as_hooked_model, load_model
from lensprune.models.base import HookedModel
from lensprune.protocols.requests import GenerateRequest, GenerateResponse
from lensprune.sweeps.run import sweep
from tests.helpers.families import save_folder
from tests.helpers.tiny_models import tiny

PROMPTS = [(5, 9, 30, 41, 77, 12), (8, 60, 61), (4, 7, 200, 100, 99, 3), (40,)]
STEPS = 8


def generated(model: HookedModel, executor: str) -> list[tuple[int, ...]]:
    requests = [GenerateRequest(prompt, ("\x00",), STEPS) for prompt in PROMPTS]
    variants = [CLEAN, *mlp(model)]
    answered = next(iter(make_executor(executor, model).run(requests, variants)))
    assert answered.variant is CLEAN
    assert all(isinstance(r, GenerateResponse) for r in answered.responses)
    return [r.token_ids for r in answered.responses]  # type: ignore[union-attr]


def by_transformers(model: HookedModel) -> list[tuple[int, ...]]:
    hf: Any = model.module.original_model
    texts = []
    for prompt in PROMPTS:
        ids = torch.tensor([prompt], device=model.facts.device)
        with torch.inference_mode():
            out = hf.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=STEPS)
        texts.append(tuple(out[0, len(prompt) :].tolist()))
    return texts


def mlp(model: HookedModel) -> list[Variant]:
    return each_mlp(model, "zero", [1])


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "repetition_penalty": {"repetition_penalty": 1.8},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 1},
    "suppress_tokens": {"suppress_tokens": "most likely"},
    "begin_suppress_tokens": {"begin_suppress_tokens": "most likely"},
    "bad_words_ids": {"bad_words_ids": "most likely"},
    "several": {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2, "suppress_tokens": "most likely"},
}


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_both_executors_decode_as_transformers_does(
    family: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny(family)
    plain = generated(model, "hooked")
    likely = sorted({tokens[0] for tokens in plain})
    config = model.module.original_model.generation_config  # type: ignore[union-attr]
    for name, value in settings.items():
        chosen = [[token] for token in likely] if name == "bad_words_ids" else likely
        monkeypatch.setattr(config, name, chosen if value == "most likely" else value)  # type: ignore[arg-type]
    expected = by_transformers(model)
    assert generated(model, "hooked") == expected
    assert generated(model, "forked") == expected
    assert (expected != plain) is bool(settings)


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_beams", 4), ("forced_eos_token_id", 3), ("remove_invalid_values", True), ("stop_strings", "x")],
)
def test_what_greedy_decoding_has_not_is_refused_by_name(
    name: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny("llama")
    monkeypatch.setattr(model.module.original_model.generation_config, name, value)  # type: ignore[union-attr, arg-type]
    with pytest.raises(UserError, match=rf"sets {name} to {value!r}"):
        sweep(model.module, ["arithmetic"], ["generate"], mlp(model), limit=2, shots=0, progress=False)
    assert len(
        sweep(model.module, ["arithmetic"], ["continuation"], mlp(model), limit=2, shots=0, progress=False).conditions
    )


WITHOUT_EFFECT = {
    "the length and the end, which a request sets itself": {"max_length", "max_new_tokens", "eos_token_id"},
    "sampling, which a request sets itself": {"do_sample", "temperature", "top_k", "top_p"},
    "of beams alone": {"early_stopping", "length_penalty"},
    "faster ways to the same tokens": {
        "use_mtp", "use_cache", "cache_implementation", "cache_config", "max_cache_len", "is_assistant",
        "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold",
        "prompt_lookup_num_tokens", "max_matching_ngram_size", "assistant_early_exit", "assistant_lookbehind",
        "target_lookbehind", "assistant_ensemble_weight", "speculation_type", "compile_config", "disable_compile",
        "continuous_batching_config", "low_memory", "prefill_chunk_size",
    },
    "order of the logits stays": {"renormalize_logits"},
    "what is returned beside tokens": {
        "output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate",
    },
    "no part of a text": {
        "pad_token_id", "bos_token_id", "decoder_start_token_id", "_from_model_config", "transformers_version",
    },
}  # fmt: skip


def test_every_setting_of_transformers_is_applied_refused_or_without_effect() -> None:
    """A setting that a later version of transformers brings fails here, until it is told which it is."""
    honoured, refused = set(greedy._NEUTRAL), {*greedy._REFUSED, *greedy._SAMPLING_REFUSED}
    rest = set[str]().union(*WITHOUT_EFFECT.values())
    assert honoured & refused == honoured & rest == refused & rest == set()
    assert set(vars(GenerationConfig())) <= honoured | refused | rest


def test_a_length_in_the_config_is_not_applied_and_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny("llama")
    asked: dict[str, Any] = {"limit": 2, "shots": 0, "max_new_tokens": 4, "progress": False}
    before = sweep(model.module, ["arithmetic"], ["generate"], mlp(model), **asked)
    monkeypatch.setattr(model.module.original_model.generation_config, "max_new_tokens", 2)  # type: ignore[union-attr]
    after = sweep(model.module, ["arithmetic"], ["generate"], mlp(model), **asked)
    assert "sets max_new_tokens to 2, which lm-eval obeys" in caplog.text
    assert after.records()["text"].equals(before.records()["text"])


def test_a_run_records_the_settings_and_is_not_resumed_under_others(tmp_path: Path) -> None:
    folder = save_folder("llama", tmp_path / "model")
    asked: dict[str, Any] = {"limit": 2, "shots": 0, "progress": False, "out": tmp_path / "run"}
    model = as_hooked_model(load_model(folder))
    first = sweep(folder, ["arithmetic"], ["generate"], mlp(model), **asked)
    assert first.spec.decoding == GreedyRules(model).recorded
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "repetition_penalty": 1.3}))
    with pytest.raises(UserError, match=r"generation config: repetition_penalty null there, 1\.3 here"):
        sweep(folder, ["arithmetic"], ["generate"], mlp(model), **asked)
