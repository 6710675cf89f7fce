"""Double precision: padding does not matter there either, and the executors agree."""

from __future__ import annotations

import pytest

from lensprune.ablation.variants import CLEAN, each_head, each_layer
from lensprune.engine import ForkedExecutor, HookedExecutor
from lensprune.protocols.requests import LoglikelihoodResponse
from tests.helpers.families import FAMILIES
from tests.helpers.tiny_models import double, generation_requests, likelihood_requests


# Mixtral's grouped matrix product has no double precision in PyTorch.
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "mixtral"])
def test_padded_rows_score_as_single_ones_do(family: str) -> None:
    model = double(family)
    requests = likelihood_requests(model)
    [padded] = HookedExecutor(model).run(requests, [CLEAN])
    [single] = HookedExecutor(model, max_tokens=1).run(requests, [CLEAN])
    for one, other in zip(padded.responses, single.responses, strict=True):
        assert isinstance(one, LoglikelihoodResponse)
        assert isinstance(other, LoglikelihoodResponse)
        assert one.logprob == pytest.approx(other.logprob, abs=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_forked_gives_what_hooked_does(family: str) -> None:
    model = double(family)
    requests = [*likelihood_requests(model), *generation_requests(model)]
    variants = [CLEAN, *each_layer(model, layers=[1]), *each_head(model, layers=[2], heads=[3])]
    for fast, slow in zip(
        ForkedExecutor(model).run(requests, variants), HookedExecutor(model).run(requests, variants), strict=True
    ):
        for one, other in zip(fast.responses, slow.responses, strict=True):
            if isinstance(one, LoglikelihoodResponse):
                assert isinstance(other, LoglikelihoodResponse)
                assert one.logprob == pytest.approx(other.logprob, abs=1e-5)
            else:
                assert one == other
