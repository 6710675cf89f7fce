"""Double precision: padding does not matter there either."""

from __future__ import annotations

import pytest

from lensprune.ablation.variants import CLEAN
from lensprune.engine import HookedExecutor
from lensprune.protocols.requests import LoglikelihoodResponse
from tests.families import FAMILIES
from tests.models_cache import likelihood_requests
from tests.unit.attribution.test_nodes import double


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
