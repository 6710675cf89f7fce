"""The reference executor: batching, caching and stops never change an answer."""

from __future__ import annotations

import math

import pytest
import torch

from lensprune.ablation import CLEAN, Ablation, Head, Layer, Variant
from lensprune.engine import ForkedExecutor, HookedExecutor, VariantResponses
from lensprune.engine.batching import batches_by_length, pad_left
from lensprune.errors import UserError
from lensprune.models import as_hooked_model, load_model
from lensprune.models.base import HookedModel
from lensprune.protocols.requests import GenerateRequest, GenerateResponse, LoglikelihoodRequest, LoglikelihoodResponse
from tests.helpers.families import FAMILIES, save_folder
from tests.helpers.tiny_models import generation_requests, likelihood_requests, tiny
from tests.helpers.tolerances import assert_greedy, assert_responses_agree, assert_tensors_agree

VARIANTS = [CLEAN, Variant("L1.skip", (Ablation(Layer(1), "skip"),)), Variant("L1.H2", (Ablation(Head(1, 2), "zero"),))]


def plain_logprob(model: HookedModel, request: LoglikelihoodRequest) -> float:
    ids = torch.tensor([request.context_ids + request.continuation_ids])
    with torch.inference_mode():
        logits = model.forward(ids, torch.ones_like(ids), torch.arange(ids.shape[1])[None])[0]
    logprobs = logits.log_softmax(-1)
    start = len(request.context_ids)
    return sum(float(logprobs[start + t - 1, token]) for t, token in enumerate(request.continuation_ids))


@pytest.mark.parametrize("family", FAMILIES)
def test_batched_equals_one_by_one(family: str) -> None:
    model = tiny(family)
    requests = likelihood_requests(model)
    together = list(HookedExecutor(model, 4096).run(requests, VARIANTS))
    apart = list(HookedExecutor(model, 1).run(requests, VARIANTS))
    assert_responses_agree(model, requests, together, apart)
    found = [r.logprob for r in together[0].responses if isinstance(r, LoglikelihoodResponse)]
    assert_tensors_agree(
        found, [plain_logprob(model, r) for r in requests if isinstance(r, LoglikelihoodRequest)], torch.float32
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_cached_batched_generation_equals_uncached_one_by_one(family: str) -> None:
    model = tiny(family)
    requests = generation_requests(model)
    [result] = HookedExecutor(model).run(requests, [CLEAN])
    rows = []
    for request, response in zip(requests, result.responses, strict=True):
        assert isinstance(response, GenerateResponse)
        rows.append((request.context_ids, response.token_ids))
        assert response.stop_reason == ("eos" if response.token_ids[-1] == 2 else "length")
    assert_greedy(model, rows)


def test_skip_while_decoding_equals_skip_recomputed() -> None:
    model = tiny("llama")
    request = generation_requests(model)[0]
    assert isinstance(request, GenerateRequest)
    [result] = HookedExecutor(model).run([request], [VARIANTS[1]])
    response = result.responses[0]
    assert isinstance(response, GenerateResponse)
    assert_greedy(model, [(request.context_ids, response.token_ids)], VARIANTS[1])


def test_mixed_requests_keep_their_order_and_progress_counts_rows() -> None:
    model = tiny("gpt2")
    requests = [*generation_requests(model), *likelihood_requests(model)]
    done: list[int] = []
    results = list(HookedExecutor(model).run(requests, VARIANTS, progress=done.append))
    assert [r.variant.name for r in results] == [v.name for v in VARIANTS]
    assert sum(done) == len(requests) * len(VARIANTS)
    for request, response in zip(requests, results[0].responses, strict=True):
        assert isinstance(response, GenerateResponse) == isinstance(request, GenerateRequest)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neo", "llama"])
def test_short_answers_to_long_prompts_wait_within_the_context(family: str) -> None:
    """GPT-2 has no positions past its context, and GPT-Neo no mask."""
    model = tiny(family)
    requests = [
        GenerateRequest(tuple(range(5, 205)) * 2 + tuple(range(5, 105)), ("\x00",), 12),
        GenerateRequest((10, 11, 12), ("\x00",), 60),
    ]
    executor = HookedExecutor(model)
    [together] = executor.run(requests, [CLEAN])
    apart = tuple(next(executor.run([request], [CLEAN])).responses[0] for request in requests)
    assert_responses_agree(model, requests, [together], [VariantResponses(CLEAN, apart)])
    assert [len(r.token_ids) for r in apart if isinstance(r, GenerateResponse)] == [12, 60]


@pytest.mark.parametrize("executor", [HookedExecutor, ForkedExecutor])
def test_a_name_used_twice_is_refused(executor: type[HookedExecutor | ForkedExecutor]) -> None:
    model = tiny("llama")
    same = [Variant("same", (Ablation(Layer(layer), "skip"),)) for layer in (0, 2)]
    with pytest.raises(UserError, match="'same' is used twice"):
        list(executor(model).run(likelihood_requests(model), same))


def test_non_finite_logits_are_said_and_do_not_stop_the_run(tmp_path) -> None:
    model = as_hooked_model(load_model(save_folder("llama", tmp_path / "llama"), self_check=False))
    with torch.no_grad():
        next(p for n, p in model.module.original_model.named_parameters() if "norm" in n).fill_(math.nan)
    requests = [likelihood_requests(model)[0], generation_requests(model)[0]]
    [result] = HookedExecutor(model).run(requests, [CLEAN])
    likelihood, generation = result.responses
    assert isinstance(likelihood, LoglikelihoodResponse)
    assert math.isnan(likelihood.logprob)
    assert not likelihood.is_greedy
    assert isinstance(generation, GenerateResponse)
    assert (generation.stop_reason, generation.token_ids) == ("non_finite", ())


def test_padding_and_batches() -> None:
    padded = pad_left([[5, 6, 7], [8]], 0, "cpu")
    assert padded.input_ids.tolist() == [[5, 6, 7], [0, 0, 8]]
    assert padded.attention_mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert padded.position_ids.tolist() == [[0, 1, 2], [0, 0, 0]]
    batches = list(batches_by_length([3, 10, 4, 4], 8))
    assert batches == [[1], [2, 3], [0]]
    assert list(batches_by_length([3, 4, 4, 4], 20, ["a", "a", "b", "a"])) == [[1, 3, 0], [2]]
    with pytest.raises(UserError, match="positive"):
        list(batches_by_length([1], 0))
