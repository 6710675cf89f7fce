"""The helper that compares model outputs notices what is more than rounding."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
import torch

from lensprune.ablation import CLEAN
from lensprune.engine import HookedExecutor, VariantResponses
from lensprune.protocols.requests import GenerateResponse, LoglikelihoodResponse
from tests.helpers.tiny_models import double, generation_requests, likelihood_requests, tiny
from tests.helpers.tolerances import (
    ROUNDINGS,
    assert_greedy,
    assert_responses_agree,
    assert_tensors_agree,
    assert_zero,
    precision,
    rounding,
)


def test_rounding_scales_with_precision_size_and_length() -> None:
    assert rounding(torch.float32, 80, 4) == 8 * 2**-23 * 80 * 2
    assert precision(tiny("llama")) == 2**-23
    assert precision(double("gpt2")) == 2**-52
    assert ROUNDINGS * precision(double("llama")) == 2**-23 / 32**0.5


def test_only_what_is_within_rounding_agrees() -> None:
    expected = torch.tensor([-0.5, -80.0])
    assert_tensors_agree(expected + torch.tensor([7e-5, 0]), expected, torch.float32)
    with pytest.raises(AssertionError, match="Not equal"):
        assert_tensors_agree(expected + torch.tensor([9e-5, 0]), expected, torch.float32)
    with pytest.raises(AssertionError, match="nothing but zeros"):
        assert_tensors_agree(torch.zeros(2), torch.zeros(2), torch.float32)
    with pytest.raises(AssertionError, match="Not equal"):
        assert_tensors_agree(expected + torch.tensor([7e-5, 0]), expected, torch.float32, at_most=6e-5)
    assert_zero([0.0, 7e-5], torch.float32, size=80)
    with pytest.raises(AssertionError, match="Not equal"):
        assert_zero([0.0, 9e-5], torch.float32, size=80)
    frame = pd.DataFrame({"part": ["a", "b"], "value": [1.0, 2.0]})
    assert_tensors_agree(frame.assign(value=[1.0, 2.000001]), frame, torch.float32)
    with pytest.raises(AssertionError):
        assert_tensors_agree(frame.assign(part=["a", "c"]), frame, torch.float32)


def test_a_wrong_token_a_wrong_sum_and_a_wrong_flag_are_noticed() -> None:
    model = tiny("llama")
    requests = [*generation_requests(model), *likelihood_requests(model)]
    [expected] = HookedExecutor(model).run(requests, [CLEAN])
    assert_responses_agree(model, requests, [expected], [expected])
    generated, scored = expected.responses[0], expected.responses[-1]
    assert isinstance(generated, GenerateResponse)
    assert isinstance(scored, LoglikelihoodResponse)
    other = (*generated.token_ids[:-1], (generated.token_ids[-1] + 1) % 256)
    for wrong in (
        (replace(generated, token_ids=other), *expected.responses[1:]),
        (*expected.responses[:-1], replace(scored, logprob=scored.logprob + 1e-3)),
        (*expected.responses[:-1], replace(scored, is_greedy=not scored.is_greedy)),
    ):
        with pytest.raises(AssertionError):
            assert_responses_agree(model, requests, [VariantResponses(CLEAN, wrong)], [expected])
    context = generation_requests(model)[0].context_ids
    assert_greedy(model, [(context, generated.token_ids)])
    with pytest.raises(AssertionError):
        assert_greedy(model, [(context, other)])
