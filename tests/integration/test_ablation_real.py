"""Ablations of the real model against plain transformers, and its batches, cache and executors against each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from lensprune.ablation import (
    MLP,
    Ablation,
    Attention,
    Head,
    KVGroup,
    Layer,
    Variant,
    collect_reference,
    layer_range,
)
from lensprune.ablation.optimal import ablation_loss
from lensprune.engine import make_executor
from lensprune.engine.hooked import HookedExecutor
from lensprune.models import BridgeModel, as_hooked_model, encode
from lensprune.protocols.requests import (
    GenerateRequest,
    GenerateResponse,
    LoglikelihoodRequest,
    Request,
)
from lensprune.sweeps.run import sweep
from tests.helpers.logits import hooked_logits, plain_logits
from tests.helpers.tolerances import assert_greedy, assert_responses_agree, assert_tensors_agree

TEXT = "The capital of France is Paris, and the capital of Italy is"
TEXTS = ("2 + 3 =", "Water boils at a temperature of", "The cat sat on the mat, and the dog sat on", "Once")


@pytest.fixture(scope="module")
def model(smollm2: Any) -> BridgeModel:
    adapter = as_hooked_model(smollm2)
    assert isinstance(adapter, BridgeModel)
    return adapter


@pytest.fixture(scope="module")
def plain(model: BridgeModel) -> Any:
    """A plain Llama with weights of its own, so that it may be changed."""
    from transformers import LlamaForCausalLM

    assert model.raw_model is not None
    copy = LlamaForCausalLM(model.raw_model.config).eval()
    copy.config._attn_implementation = "eager"
    copy.load_state_dict(model.raw_model.state_dict())
    return copy


def ids(model: BridgeModel) -> list[int]:
    return encode(model, TEXT)


def under(model: BridgeModel, *ablations: Ablation) -> torch.Tensor:
    return hooked_logits(model, ids(model), Variant("variant", ablations))


@contextmanager
def zeroed_columns(plain: Any, layer: int, heads: Sequence[int], d_head: int) -> Iterator[None]:
    weight = plain.model.layers[layer].self_attn.o_proj.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        for head in heads:
            weight[:, head * d_head : (head + 1) * d_head] = 0
        yield
        weight.copy_(kept)


@pytest.mark.parametrize("layer", [0, 1, 14, 28, 29])
def test_skip_equals_bypassed_block(model: BridgeModel, plain: Any, layer: int) -> None:
    clean = plain_logits(plain, ids(model))
    handle = plain.model.layers[layer].register_forward_hook(
        lambda module, args, kwargs, output: args[0] if args else kwargs["hidden_states"], with_kwargs=True
    )
    expected = plain_logits(plain, ids(model))
    handle.remove()
    assert (expected - clean).abs().max() > 1e-2
    skipped = under(model, Ablation(Layer(layer), "skip")).log_softmax(-1)
    assert_tensors_agree(skipped, expected.log_softmax(-1), torch.float32)


@pytest.mark.parametrize(("layer", "head"), [(0, 0), (13, 4), (29, 8)])
def test_zeroed_head_equals_zeroed_projection_columns(model: BridgeModel, plain: Any, layer: int, head: int) -> None:
    with zeroed_columns(plain, layer, [head], model.facts.d_head):
        expected = plain_logits(plain, ids(model))
    zeroed = under(model, Ablation(Head(layer, head), "zero"))
    assert_tensors_agree(zeroed.log_softmax(-1), expected.log_softmax(-1), torch.float32)


def test_all_heads_zeroed_is_attention_zeroed(model: BridgeModel) -> None:
    heads = under(model, *(Ablation(Head(7, h), "zero") for h in range(model.facts.n_heads)))
    assert_tensors_agree(heads, under(model, Ablation(Attention(7), "zero")), torch.float32)


def test_heads_of_a_group_differ_singly_and_make_up_the_group(model: BridgeModel) -> None:
    members = range(3, 6)
    single = [under(model, Ablation(Head(5, h), "zero")) for h in members]
    for i, first in enumerate(single):
        for second in single[i + 1 :]:
            assert (first - second).abs().max() > 1e-3
    group = under(model, Ablation(KVGroup(5, 1), "zero"))
    union = under(model, *(Ablation(Head(5, h), "zero") for h in members))
    assert torch.equal(group, union)
    assert group.any()


def requests(model: BridgeModel) -> list[Request]:
    asked: list[Request] = []
    for text in TEXTS:
        context = tuple(encode(model, text))
        asked += [
            LoglikelihoodRequest(context, tuple(encode(model, end))) for end in (" 5", " hundred degrees", " the")
        ]
        asked.append(GenerateRequest(context, ("\n",), 8))
    return asked


VARIANTS = [
    Variant("clean"),
    Variant("layer", (Ablation(Layer(11), "skip"),)),
    Variant("head", (Ablation(Head(3, 2), "zero"),)),
    Variant("group", (Ablation(KVGroup(20, 0), "zero"),)),
]


def test_batched_and_padded_equals_one_by_one(model: BridgeModel) -> None:
    asked = requests(model)
    one, many = HookedExecutor(model, max_tokens=1), HookedExecutor(model)
    assert_responses_agree(model, asked, list(many.run(asked, VARIANTS)), list(one.run(asked, VARIANTS)))


def test_forked_equals_hooked(model: BridgeModel) -> None:
    asked = requests(model)
    variants = [*VARIANTS, layer_range(model, 10, 14)]
    forked = make_executor("forked", model)
    assert forked.name == "forked"
    hooked = {a.variant.name: a for a in HookedExecutor(model).run(asked, variants)}
    found = list(forked.run(asked, variants))
    assert_responses_agree(model, asked, found, [hooked[answered.variant.name] for answered in found])


def test_cached_generation_equals_generation_without_a_cache(model: BridgeModel) -> None:
    new_tokens = 8
    asked = [GenerateRequest(tuple(encode(model, text)), ("\x00",), new_tokens) for text in TEXTS]
    for variant in VARIANTS:
        [answered] = HookedExecutor(model).run(asked, [variant])
        rows = []
        for request, response in zip(asked, answered.responses, strict=True):
            assert isinstance(response, GenerateResponse)
            ended = response.token_ids[-1] == model.tokenizer.eos_token_id
            assert ended or len(response.token_ids) == new_tokens
            assert response.text == model.tokenizer.decode(response.token_ids, skip_special_tokens=True)
            rows.append((request.context_ids, response.token_ids))
        assert_greedy(model, rows, variant)


def test_a_mean_towards_the_sink_that_a_part_writes_is_told_from_its_loss(smollm2: Any) -> None:
    """The MLPs of layers 11 and 28 write and erase the first token's massive activation; one mean over all positions
    puts a share of it everywhere."""
    variants = [Variant(f"L{layer}.mlp.mean", (Ablation(MLP(layer), "mean"),)) for layer in (11, 28)]
    found = {
        mode: sweep(
            smollm2, ["facts"], ["continuation"], variants, limit=24, items="first", mean_mode=mode, progress=False
        ).summary()
        for mode in ("pooled", "pooled_all")
    }
    accuracies = {mode: [round(24 * a) for a in table["accuracy"]] for mode, table in found.items()}
    assert accuracies == {"pooled": [21, 21, 19], "pooled_all": [21, 7, 15]}


def test_the_best_constant_is_no_worse_than_zero_or_the_mean(model: BridgeModel) -> None:
    variants = {kind: Variant(kind, (Ablation(MLP(11), kind),)) for kind in ("optimal", "mean", "zero")}
    prompts = [encode(model, text) for text in (TEXT, *TEXTS[:3])]
    reference = collect_reference(model, prompts, list(variants.values()))
    loss = {kind: ablation_loss(model, prompts, own, reference) for kind, own in variants.items()}
    assert 0 < loss["optimal"] < loss["mean"] < 0.5 < 2 < loss["zero"]
