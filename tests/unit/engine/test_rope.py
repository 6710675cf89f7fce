"""LongRoPE: an answer does not depend on how long the texts beside it are."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from random import Random

import pytest
import torch

from lensprune.ablation import CLEAN, each_head, each_layer
from lensprune.engine import Executor, ForkedExecutor, HookedExecutor, VariantResponses, make_executor
from lensprune.engine.rope import LongRopeBuckets
from lensprune.engine.traces import trace_tokens
from lensprune.errors import UserError
from lensprune.protocols.requests import GenerateRequest, LoglikelihoodRequest, LoglikelihoodResponse, Request
from tests.helpers.tiny_models import tiny
from tests.helpers.tolerances import assert_logprobs_agree, assert_responses_agree, assert_tensors_agree, equal, size_of

SWITCH = 32
CONTINUATION = 3
SCORED = (5, 28, 30, 31, 70, 100)
GENERATED = ((5, 4), (10, 40), (10, 5), (20, 13), (20, 14), (31, 2), (32, 1), (33, 9), (80, 5), (10, 33))
"""Prompt lengths and new tokens: within the switch, past it, and passing it on the way; some end while others go on."""


def requests() -> list[Request]:
    rng = Random(0)

    def words(size: int) -> tuple[int, ...]:
        return tuple(rng.randrange(4, 250) for _ in range(size))

    scored = [LoglikelihoodRequest(words(size), words(CONTINUATION)) for size in SCORED]
    return [*scored, *(GenerateRequest(words(size), ("\x00",), new) for size, new in GENERATED)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        HookedExecutor,
        lambda model: HookedExecutor(model, 60),
        ForkedExecutor,
        lambda model: ForkedExecutor(model, max_tokens=60),
    ],
)
def test_answers_are_those_of_each_request_alone(make: Callable[..., Executor]) -> None:
    model = tiny("long_rope")
    variants = [CLEAN, *each_layer(model, layers=[1]), *each_head(model, layers=[2], heads=[1])]
    alone = [list(HookedExecutor(model).run([request], variants)) for request in requests()]
    done: list[int] = []
    found = list(make(model).run(requests(), variants, progress=done.append))
    expected = [
        VariantResponses(variant, tuple(own[v].responses[0] for own in alone)) for v, variant in enumerate(variants)
    ]
    assert_responses_agree(model, requests(), found, expected)
    assert sum(done) == len(requests()) * len(variants)


@pytest.mark.parametrize("executor", ["forked", "hooked"])
def test_traces_are_those_of_each_text_alone(executor: str) -> None:
    model = tiny("long_rope")
    texts = [request for request in requests() if isinstance(request, LoglikelihoodRequest)]
    [together] = trace_tokens(model, texts, [CLEAN], executor=executor)
    alone = [trace_tokens(model, [text], [CLEAN], executor="hooked")[0][0].logprob for text in texts]
    size = size_of(*alone)
    for found, expected in zip(together, alone, strict=True):
        assert_tensors_agree(found.logprob, expected, torch.float32, size=size)


def test_sides() -> None:
    rope_buckets = LongRopeBuckets(tiny("long_rope"))
    scored = [rope_buckets.of(LoglikelihoodRequest((5,) * size, (6,) * CONTINUATION)) for size in (30, 31)]
    assert scored == [0, 1]
    cases = [(32, 1), (33, 1), (20, 13), (20, 14)]
    assert [rope_buckets.of(GenerateRequest((5,) * size, (), new)) for size, new in cases] == [0, 1, 0, ("passes", 20)]
    other = LongRopeBuckets(tiny("llama"))
    assert (rope_buckets.longest, other.longest) == (SWITCH, 512)
    assert other.of(GenerateRequest((5,) * 500, (), 12)) == 0


@pytest.mark.parametrize("executor", ["forked", "hooked"])
def test_llama_4_scales_queries_by_position_whatever_the_padding(executor: str) -> None:
    model = tiny("llama4")
    rng = Random(1)
    asked: list[Request] = []
    for size in (3, 6, 7, 12, 12, 20):
        words = tuple(rng.randrange(4, 250) for _ in range(size))
        asked += [LoglikelihoodRequest(words, (9, 10)), GenerateRequest(words, ("\x00",), 4)]
    variants = [CLEAN, *each_layer(model, layers=[1])]
    alone = [list(HookedExecutor(model).run([request], variants)) for request in asked]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        together = list(make_executor(executor, model).run(asked, variants))
    for v, result in enumerate(together):
        expected = [one for row in alone for one in row[v].responses]
        assert_logprobs_agree(result.responses, expected, torch.float32)
        for response, other in zip(result.responses, expected, strict=True):
            assert isinstance(response, LoglikelihoodResponse) or response == other
    ids = torch.tensor([[3, 3, *range(10, 20)]])
    mask = (ids != 3).long()
    with pytest.raises(UserError, match="scales queries by their index in the row from 8 tokens on"):
        model.forward(ids, mask, (mask.cumsum(1) - 1).clamp(min=0))


def test_dynamic_rope_forgets_longer_texts() -> None:
    model = tiny("dynamic_rope")
    ids, positions = torch.arange(10, 42)[None], torch.arange(32)[None]
    with torch.no_grad():
        before = model.forward(ids, torch.ones_like(ids), positions)
        # A call of the user's own, past the context.
        long = torch.arange(10, 58, device=model.facts.device)[None]
        model.module.original_model(input_ids=long, position_ids=torch.arange(48, device=long.device)[None])
        assert equal(model.forward(ids, torch.ones_like(ids), positions), before)
        with pytest.raises(UserError, match="a text of 48 tokens is longer than this model's 32"):
            model.forward(long, torch.ones_like(long), torch.arange(48)[None])
