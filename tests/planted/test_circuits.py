"""The planted models compute what their docstrings say, and ablation finds exactly their heads."""

from __future__ import annotations

import pytest
import torch

from lensprune.ablation import Ablation, BatchState, Head, Variant, VariantHooks, each_head
from lensprune.engine.hooked import HookedExecutor
from lensprune.models.base import HookedModel
from lensprune.protocols.requests import GenerateRequest, LoglikelihoodRequest
from tests.helpers.planted.circuits import LEAK, ids, model_of
from tests.helpers.planted.models import SHAPES

PROMPTS = {
    "induction": [("a b c d a", "b"), ("p o n m o", "n"), ("c h c", "h")],
    "retrieval": [("k1 = v4 ; k3 = v0 ; ? k3 =", "v0"), ("k0 = v5 ; k2 = v1 ; k4 = v4 ; ? k0 =", "v5")],
    "arithmetic": [("3 + 4 =", "3"), ("12 + 7 =", "12")],
    "backup": [("a b c d a", "b"), ("p o n m o", "n")],
}
HEADS = {
    "induction": {(0, 1), (1, 2)},
    "retrieval": {(0, 0), (0, 2), (1, 3)},
    "arithmetic": {(0, 3), (1, 0)},
    "backup": {(0, 1)},
}


def logits(model: HookedModel, text: str, *removed: tuple[int, int]) -> torch.Tensor:
    """Logits at the last position without some heads."""
    tokens = torch.tensor([ids(model, text)])
    positions = torch.arange(tokens.shape[1])[None]
    variant = Variant("test", tuple(Ablation(Head(*place), "zero") for place in removed))
    hooks = VariantHooks(model, variant, BatchState(positions))
    with torch.inference_mode(), model.hooks(hooks.named):
        return model.forward(tokens, torch.ones_like(tokens), positions)[0, -1]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", PROMPTS)
def test_the_answer_has_the_logit_of_the_docstring(name: str, shape: str) -> None:
    model = model_of(name, shape)
    for text, answer in PROMPTS[name]:
        expected = torch.zeros(model.facts.d_vocab)
        expected[model.tokenizer.convert_tokens_to_ids(answer)] = 10.0
        if name == "backup":
            expected[model.tokenizer.bos_token_id] = 10.0
        torch.testing.assert_close(logits(model, text), expected, atol=LEAK, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", PROMPTS)
def test_ablation_finds_exactly_the_planted_heads(name: str, shape: str) -> None:
    model = model_of(name, shape)
    encode = model.tokenizer.convert_tokens_to_ids
    requests = [LoglikelihoodRequest(ids(model, text), (encode(answer),)) for text, answer in PROMPTS[name]]
    clean, *others = HookedExecutor(model).run(requests, [Variant("clean"), *each_head(model)])
    base = [r.logprob for r in clean.responses]
    needed = set()
    for answered in others:
        drops = [b - r.logprob for b, r in zip(base, answered.responses, strict=True)]
        if max(drops) > 1:
            assert min(drops) > 2.5
            needed.add((answered.variant.layer, answered.variant.head))
        elif name != "backup":
            assert max(map(abs, drops)) < 1e-3
    assert needed == HEADS[name]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_back_up_takes_over_and_both_together_are_needed(shape: str) -> None:
    model = model_of("backup", shape)
    b = model.tokenizer.convert_tokens_to_ids("b")
    bos = model.tokenizer.bos_token_id
    for removed, of_b, of_bos in (((), 10, 10), (((1, 2),), 10, 0), (((2, 0),), 10, 0), (((1, 2), (2, 0)), 0, 0)):
        got = logits(model, "a b c d a", *removed)
        assert got[[b, bos]].tolist() == pytest.approx([of_b, of_bos], abs=10 * LEAK)


@pytest.mark.parametrize("shape", SHAPES)
def test_retrieval_is_generated(shape: str) -> None:
    model = model_of("retrieval", shape)
    request = GenerateRequest(ids(model, "k1 = v4 ; k3 = v0 ; ? k3 ="), (), 1)
    (answered,) = HookedExecutor(model).run([request], [Variant("clean")])
    assert answered.responses[0].text == "v0"
