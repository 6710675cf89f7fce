"""A HookedTransformer gives the numbers of a TransformerBridge."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lensprune.attribution import (
    activation_patching,
    attribution_patching,
    direct_logit_attribution,
    edge_attribution,
    logit_lens,
    path_patching,
)
from lensprune.heads import SCORES, head_scores
from lensprune.models import hooked_transformer as module
from lensprune.models.base import HookedModel
from tests.helpers.attribution import UNEVEN, logit_size
from tests.helpers.tiny_models import tiny
from tests.helpers.tolerances import assert_tensors_agree

pytestmark = pytest.mark.skipif(module.HookedTransformer is None, reason="TransformerLens 4 has no HookedTransformer")

METHODS: dict[str, Callable[[HookedModel], Any]] = {
    "dla": lambda model: direct_logit_attribution(model, UNEVEN).table()["value"],
    "lens": lambda model: logit_lens(model, UNEVEN)["logit_difference"],
    "patch": lambda model: activation_patching(model, UNEVEN, ["head", "mlp", "resid"])["effect"],
    "atp": lambda model: attribution_patching(model, UNEVEN, ["head", "mlp", "resid"])["effect"],
    "path": lambda model: path_patching(model, UNEVEN, "L2.mlp").sort_values("sender")["effect"],
    "eap-ig": lambda model: edge_attribution(model, UNEVEN, steps=2).values,
}


def hooked(family: str) -> HookedModel:
    return tiny(family, hooked_transformer=True)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3"])
@pytest.mark.parametrize("method", METHODS)
def test_attribution(method: str, family: str) -> None:
    size = logit_size(tiny(family))
    found, expected = (METHODS[method](model) for model in (hooked(family), tiny(family)))
    assert_tensors_agree(found, expected, torch.float32, size=size, terms=4)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_head_scores(family: str) -> None:
    names = [name for name in SCORES if name != "retrieval"]
    ours, theirs = (
        head_scores(model, names, limit=1, shots=0, sequences=2, length=5)["value"]
        for model in (hooked(family), tiny(family))
    )
    assert_tensors_agree(ours, theirs, torch.float32)
