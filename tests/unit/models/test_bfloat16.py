"""Every family in bfloat16, against itself in float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lensprune.ablation import CLEAN, Ablation, Head, Layer, Variant
from lensprune.engine import HookedExecutor, make_executor
from lensprune.models import as_hooked_model, load_model
from lensprune.protocols.requests import LoglikelihoodResponse
from tests.helpers.families import FAMILIES
from tests.helpers.tiny_models import likelihood_requests, tiny

TOLERANCE = 0.04
"""Nats a token. Bfloat16 keeps 8 significant bits, so weights and activations are off by up to 2⁻⁹ of their size; the
largest differences measured on these models are near half of this."""


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_stays_near_float32(family: str, family_folder: Callable[[str], Path]) -> None:
    exact = tiny(family)
    rounded = as_hooked_model(load_model(family_folder(family), dtype="bfloat16", device="cpu"))
    assert rounded.facts.dtype == "bfloat16"
    assert {p.dtype for p in rounded.module.parameters()} == {torch.bfloat16}
    requests = likelihood_requests(exact)
    variants = [
        CLEAN,
        Variant("layer", (Ablation(Layer(1), "skip"),)),
        Variant("head", (Ablation(Head(1, 2), "zero"),)),
    ]
    expected = list(HookedExecutor(exact).run(requests, variants))
    fast = make_executor("forked", rounded)
    assert fast.name == "forked"
    for executor in (HookedExecutor(rounded), fast):
        for mine, other in zip(executor.run(requests, variants), expected, strict=True):
            differences = []
            for a, b in zip(mine.responses, other.responses, strict=True):
                assert isinstance(a, LoglikelihoodResponse)
                assert isinstance(b, LoglikelihoodResponse)
                differences.append(abs(a.logprob - b.logprob) / b.n_tokens)
            # A difference of exactly zero would mean that float32 was compared with itself.
            assert 0 < max(differences) < TOLERANCE
