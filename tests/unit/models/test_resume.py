"""A forward pass resumed from a layer's residual ends in the logits of the whole pass."""

from __future__ import annotations

import pytest
import torch

from lensprune.attribution.runs import capture, run_from
from tests.helpers.tiny_models import tiny

TOKENS = torch.tensor([[5, 9, 30, 41, 77, 12], [8, 60, 61, 62, 63, 64]])


# The first three return tuples; without one, every block that is left out would cost the residual a dimension.
@pytest.mark.parametrize("family", ["gpt_neo", "falcon", "bloom", "llama", "gpt2", "gemma3"])
def test_every_layer_resumes_to_the_same_logits(family: str) -> None:
    model = tiny(family)
    names = [f"blocks.{layer}.hook_resid_pre" for layer in range(model.facts.n_layers)]
    expected, residuals = capture(model, TOKENS, names)
    for layer, name in enumerate(names):
        with torch.no_grad():
            found = run_from(model, layer, residuals[name], TOKENS, [])
        torch.testing.assert_close(found, expected)
