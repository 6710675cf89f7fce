"""Double precision: padding does not matter there either, and the executors agree."""

from __future__ import annotations

import pytest

from lensprune.ablation.enumeration import each_head, each_layer
from lensprune.ablation.variants import CLEAN
from lensprune.engine import ForkedExecutor, HookedExecutor
from tests.helpers.families import FAMILIES
from tests.helpers.tiny_models import double, generation_requests, likelihood_requests
from tests.helpers.tolerances import assert_responses_agree


# Mixtral's grouped matrix product has no double precision in PyTorch.
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "mixtral"])
def test_padded_rows_score_as_single_ones_do(family: str) -> None:
    model = double(family)
    requests = likelihood_requests(model)
    [padded] = HookedExecutor(model).run(requests, [CLEAN])
    [single] = HookedExecutor(model, max_tokens=1).run(requests, [CLEAN])
    assert_responses_agree(model, requests, [padded], [single])


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_forked_gives_what_hooked_does(family: str) -> None:
    model = double(family)
    requests = [*likelihood_requests(model), *generation_requests(model)]
    variants = [CLEAN, *each_layer(model, layers=[1]), *each_head(model, layers=[2], heads=[3])]
    fast, slow = (list(make(model).run(requests, variants)) for make in (ForkedExecutor, HookedExecutor))
    assert_responses_agree(model, requests, fast, slow)
