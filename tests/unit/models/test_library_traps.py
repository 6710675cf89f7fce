"""What the installed libraries do that is not expected (docs/explanation/pitfalls.md), and what is done about it.

A test that fails after an upgrade means that its row in the table has to change.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lm_eval.api.task import MultipleChoiceTask
from lm_eval.models.huggingface import HFLM
from transformer_lens import patching
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

from lensprune.ablation.variants import CLEAN
from lensprune.engine import HookedExecutor
from lensprune.models import as_hooked_model, load_model
from lensprune.models.adapt import current_model
from lensprune.models.boot import tokenizer_for_boot
from lensprune.protocols.requests import LoglikelihoodRequest, LoglikelihoodResponse
from lensprune.replacement import Part, model_pair
from tests.helpers.families import byte_tokenizer, hf_model, save_folder
from tests.helpers.model_pairs import fresh
from tests.helpers.tiny_models import tiny

IDS = torch.arange(10, 22)[None]
WRONG_WHEN_CACHED = ("gpt2", "mpt", "llama", "mistral", "gemma2", "phi3", "mixtral", "gpt_oss")
RIGHT_WHEN_CACHED = ("gpt_neox", "bloom", "opt", "falcon")


def bridge_of(family: str) -> tuple[Any, PreTrainedModel]:
    """A bridge as TransformerLens boots it, without anything of ours, and the same model unwrapped."""
    wrapped, plain = hf_model(family).eval(), hf_model(family).eval()
    wrapped.config.architectures = [type(wrapped).__name__]
    bridge = TransformerBridge.boot_transformers(
        f"lensprune/{family}",
        hf_model=wrapped,
        tokenizer=tokenizer_for_boot(byte_tokenizer()),
        device="cpu",
        dtype=torch.float32,
    )
    return bridge, plain


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def decoded(model: Any) -> torch.Tensor:
    """Logits of `IDS` token by token with a cache, as transformers' models take one."""
    cache = DynamicCache(config=model.config)
    steps = []
    for t in range(IDS.shape[1]):
        step = model(
            input_ids=IDS[:, t : t + 1],
            attention_mask=torch.ones(1, t + 1, dtype=torch.long),
            position_ids=torch.tensor([[t]]),
            cache=cache,
            use_cache=True,
        )
        steps.append(step.logits)
    return torch.cat(steps, dim=1)


def stored_bytes(model: torch.nn.Module) -> int:
    """Of all parameters, each once whatever views of it there are."""
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()}
    return sum(storages.values())


@pytest.mark.parametrize("family", [*WRONG_WHEN_CACHED, *RIGHT_WHEN_CACHED])
def test_cached_decoding_through_a_bridge_is_wrong_for_many_families(family: str) -> None:
    bridge, plain = bridge_of(family)
    ours, positions = tiny(family), torch.arange(12)[None]
    cache = ours.new_cache()
    with torch.no_grad():
        whole, found, right = logits_of(plain), decoded(bridge.original_model), decoded(plain)
        expected = ours.forward(IDS, torch.ones_like(IDS), positions)
        steps = [
            ours.forward(IDS[:, t : t + 1], torch.ones(1, t + 1), positions[:, t : t + 1], cache=cache)
            for t in range(12)
        ]
    torch.testing.assert_close(right, whole, rtol=1e-4, atol=1e-4)
    error = float((found - whole).abs().max() / whole.std())
    assert (error > 0.5) == (family in WRONG_WHEN_CACHED), error
    assert error < 1e-4 or family in WRONG_WHEN_CACHED
    torch.testing.assert_close(torch.cat(steps, dim=1), expected, rtol=1e-4, atol=1e-4)


def test_a_cache_is_not_cropped_to_a_length() -> None:
    cache = DynamicCache()
    cache.update(torch.zeros(1, 2, 8, 4), torch.zeros(1, 2, 8, 4), 0)
    with pytest.raises(ValueError, match="positive value"):
        cache.crop(5)
    cache.crop(-3)
    assert cache.get_seq_length() == 5


def test_patching_maps_of_grouped_heads_hold_zeros_for_heads_that_do_not_exist() -> None:
    bridge, _ = bridge_of("llama")
    _, cache = bridge.run_with_cache(IDS)
    maps = patching.get_act_patch_attn_head_all_pos_every(bridge, IDS + 1, cache, lambda logits: logits[0, -1, 5])
    # Outputs, queries, keys, values, patterns of 3 layers of 4 query heads and 2 key/value heads.
    assert maps.shape == (5, 3, 4)
    keys_and_values = maps[2:4]
    assert bool((keys_and_values[:, :, 2:] == 0).all())
    assert bool((keys_and_values[:, :, :2] != 0).all())


@pytest.mark.parametrize("family", ["phi3", "gpt2"])
def test_compatibility_mode_holds_the_fused_qkv_twice(family: str) -> None:
    bridge, plain = bridge_of(family)
    fused = [p for name, p in plain.named_parameters() if name.endswith(("qkv_proj.weight", "c_attn.weight"))]
    assert len(fused) == 3
    before = stored_bytes(bridge)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bridge.enable_compatibility_mode()
    assert stored_bytes(bridge) - before >= sum(p.numel() * p.element_size() for p in fused)
    # Models that lensprune loads stay as they are.
    assert not getattr(tiny(family).module, "compatibility_mode", False)


def test_saving_a_bridged_model_raises_and_the_raw_one_is_whole(tmp_path: Path) -> None:
    bridge, plain = bridge_of("llama")
    with pytest.raises(RuntimeError, match="shared tensors"):
        bridge.original_model.save_pretrained(tmp_path / "bridged")
    model = as_hooked_model(load_model(save_folder("llama", tmp_path / "model"), device="cpu"))
    assert model.raw_model is not None
    model.raw_model.save_pretrained(tmp_path / "raw")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "raw", attn_implementation="eager").eval()
    torch.testing.assert_close(logits_of(again), logits_of(plain))


def test_stacked_weights_of_a_bridge_are_a_copy(tmp_path: Path) -> None:
    model = load_model(save_folder("llama", tmp_path / "model"), device="cpu")
    before, known = logits_of(model.original_model), current_model(model).facts.weights_hash
    with torch.no_grad():
        model.W_O[0, 0] = 0
    assert torch.equal(logits_of(model.original_model), before)
    assert current_model(model).facts.weights_hash == known
    with torch.no_grad():
        model.blocks[0].attn.W_O[0] = 0
    assert float((logits_of(model.original_model) - before).abs().max()) > 1e-2
    assert current_model(model).facts.weights_hash != known


def test_edits_of_a_neox_models_fused_qkv_do_not_reach_its_bridge() -> None:
    bridge, plain = bridge_of("gpt_neox")
    before = logits_of(bridge.original_model)
    fused = [
        module._parameters["weight"]
        for name, module in bridge.original_model.named_modules()
        if name.endswith("attention.qkv._original_component")
    ]
    assert len(fused) == 3
    with torch.no_grad():
        for weight in fused:
            weight.zero_()
    assert torch.equal(logits_of(bridge.original_model), before)
    with torch.no_grad():
        for name, weight in plain.named_parameters():
            if name.endswith("query_key_value.weight"):
                weight.zero_()
    assert float((logits_of(plain) - before).abs().max()) > 1e-2
    # A weight replacement reaches what the bridge computes with.
    pair = model_pair(tiny("gpt_neox"), fresh("gpt_neox", 1))
    before = logits_of(pair.base.module.original_model)
    with pair.replaced([Part("attention", 0)]):
        assert float((logits_of(pair.base.module.original_model) - before).abs().max()) > 1e-2
    assert torch.equal(logits_of(pair.base.module.original_model), before)


def test_argmax_takes_a_nan_so_lm_eval_counts_it_as_right_where_gold_is_first() -> None:
    assert np.argmax([np.nan, -1.0]) == 0
    doc, likelihoods = {"gold": 0, "choices": ["yes", "no"]}, [(np.nan, False), (-1.0, False)]
    found = MultipleChoiceTask.process_results(SimpleNamespace(), doc, likelihoods)  # type: ignore[arg-type]
    assert found["acc"] == 1.0


@pytest.mark.parametrize(("attention", "attends"), [("eager", True), ("sdpa", False)])
def test_a_padded_position_attends_to_all_or_to_none(attention: str, attends: bool) -> None:
    model = hf_model("llama").eval()
    model.set_attn_implementation(attention)
    seen: list[torch.Tensor] = []
    handle = model.model.layers[0].self_attn.register_forward_hook(lambda module, args, output: seen.append(output[0]))
    ids, mask = torch.tensor([[3, 3, 3, 10, 11, 12]]), torch.tensor([[0, 0, 0, 1, 1, 1]])
    with torch.no_grad():
        model(input_ids=ids, attention_mask=mask, position_ids=torch.tensor([[0, 0, 0, 0, 1, 2]]))
    handle.remove()
    padded = seen[0][0, :3].abs().max()
    assert (float(padded) > 1e-2) == attends
    assert attends or float(padded) == 0


def test_lm_eval_sums_bfloat16_log_likelihoods_in_bfloat16() -> None:
    context, continuation = (5, 6, 7), tuple(10 + 7919 * i % 200 for i in range(25))
    model = tiny("llama", "bfloat16")
    wrapped = HFLM(pretrained=hf_model("llama").to(torch.bfloat16).eval(), tokenizer=byte_tokenizer(), batch_size=1)
    [(theirs, _)] = wrapped._loglikelihood_tokens([(("", ""), list(context), list(continuation))], disable_tqdm=True)
    [answered] = HookedExecutor(model).run([LoglikelihoodRequest(context, continuation)], [CLEAN])
    [ours] = answered.responses
    assert isinstance(ours, LoglikelihoodResponse)
    assert float(torch.tensor(theirs, dtype=torch.bfloat16)) == theirs
    step = float(torch.finfo(torch.bfloat16).eps) * 2 ** int(np.log2(abs(theirs)))
    assert step >= 0.5
    assert abs(theirs - ours.logprob) <= 2 * step
    assert float(torch.tensor(ours.logprob, dtype=torch.bfloat16)) != ours.logprob


def test_lm_eval_ties_a_head_of_its_own_again(tmp_path: Path) -> None:
    plain = hf_model("llama").eval()
    plain.config.tie_word_embeddings = True
    own = plain.lm_head.weight.detach().clone()
    assert not torch.equal(own, plain.model.embed_tokens.weight)
    HFLM(pretrained=plain, tokenizer=byte_tokenizer(), batch_size=1)
    assert torch.equal(plain.lm_head.weight, plain.model.embed_tokens.weight)


@pytest.mark.parametrize("family", ["opt", "xglm", "gpt_neo", "afmoe", "laguna", "llama"])
def test_hooked_scores_are_what_the_softmax_gives_where_attention_is_not_opened(family: str) -> None:
    model, kept = as_hooked_model(tiny(family)), {}
    names = [f"blocks.1.attn.hook_{name}" for name in ("attn_scores", "pattern")]
    hooks = [(name, lambda value, hook, name=name: kept.update({name: value.clone()})) for name in names]
    with torch.no_grad(), model.hooks(hooks):
        model.forward(IDS, torch.ones_like(IDS), torch.arange(IDS.shape[1])[None])
    scores, pattern = (kept[name] for name in names)
    opened = torch.allclose(scores.softmax(-1), pattern, atol=1e-6)
    assert opened == (family == "llama")
    assert torch.equal(scores, pattern) != opened
