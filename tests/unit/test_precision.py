"""A float64 model stays in float64: checks, constants, read-outs and choices see what float32 would round away."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lensprune.ablation import CLEAN, collect_reference, each_head
from lensprune.attribution.lens import logit_lens
from lensprune.attribution.pairs import PromptPair
from lensprune.attribution.readout import tolerance_of
from lensprune.divergence.similarity import angular_distance
from lensprune.engine import probe
from lensprune.engine.greedy import GreedyRules
from lensprune.engine.layers import LayerStack
from lensprune.engine.probe import PROBE_TOLERANCE
from lensprune.errors import UserError
from lensprune.models import as_hooked_model, load_model
from lensprune.models.bridge import BridgeModel
from lensprune.precision import accumulation_dtype, widened
from lensprune.replacement import model_pair
from tests.helpers.tiny_models import double, folder, tiny

HALF = 2.0**-30
"""Lost beside 1 in float32, kept in float64."""


@pytest.mark.parametrize(
    ("dtype", "wide"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
    ],
)
def test_numbers_are_widened_and_never_narrowed(dtype: torch.dtype, wide: torch.dtype) -> None:
    assert accumulation_dtype(dtype) == widened(torch.ones(2, dtype=dtype)).dtype == wide


def test_the_angle_of_nearly_parallel_vectors() -> None:
    a, b = (torch.tensor([1.0, y], dtype=torch.float64) for y in (0.0, 1e-5))
    assert float(angular_distance(a, b)) == pytest.approx(1e-5 / math.pi, rel=1e-4)
    assert float(angular_distance(a.float(), b.float())) == 0


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_optimal_constants_are_float64(family: str) -> None:
    model = double(family)
    variants = each_head(model, "optimal", [1])[:1]
    reference = collect_reference(model, [tuple(range(10, 20)), tuple(range(30, 42))], variants)
    [constant] = reference.optimal.values()
    assert constant.dtype == torch.float64
    assert not torch.equal(constant, constant.float().double())


def test_the_logit_lens_reads_in_float64() -> None:
    model = double("gpt2")
    clean, corrupt = tuple(range(10, 20)), tuple(range(11, 21))
    found = logit_lens(model.module, [PromptPair(clean, corrupt, 40, 41)])
    ids = torch.tensor([clean])
    with torch.no_grad():
        logits = model.forward(ids, torch.ones_like(ids), torch.arange(10)[None])[0, -1]
    expected = float(logits.log_softmax(-1)[40])
    assert abs(found["answer_logprob"].iloc[-1] - expected) < 1e-12
    assert abs(float(logits.float().log_softmax(-1)[40]) - expected) > 1e-12


def test_greedy_rules_tell_apart_what_float32_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")
    config: Any = model.module.original_model.generation_config
    monkeypatch.setattr(config, "repetition_penalty", 2.0)
    rules = GreedyRules(model)
    assert rules.settings
    logits = torch.zeros(1, model.facts.d_vocab, dtype=torch.float64)
    logits[0, 50], logits[0, 60] = 1.0, 1.0 + HALF
    assert int(rules.scores(logits[0], (5, 6), ()).argmax()) == 60
    assert int(rules.scores(logits[0].float(), (5, 6), ()).argmax()) == 50


def test_the_probe_of_a_float64_model_sees_what_a_float32_ones_takes_for_rounding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right = probe._layer_by_layer
    monkeypatch.setattr(probe, "_layer_by_layer", lambda *given: right(*given) + 6e-4)
    assert probe.difference_of(tiny("llama"), LayerStack(tiny("llama")), [CLEAN]) is None
    found = probe.difference_of(double("llama"), LayerStack(double("llama")), [CLEAN])
    assert "a probe's log-probability" in str(found)
    assert PROBE_TOLERANCE["float64"] < PROBE_TOLERANCE["float32"]
    assert tolerance_of(torch.float64) < tolerance_of(torch.float32) < tolerance_of(torch.bfloat16)


@pytest.mark.parametrize(("dtype", "noticed"), [("float64", True), ("float32", False)])
def test_the_check_of_a_pair_is_in_its_own_precision(
    dtype: str, noticed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [as_hooked_model(load_model(folder("llama", seed), dtype=dtype, device="cpu")) for seed in (0, 1)]
    forward = BridgeModel.forward

    def slightly_off(self: BridgeModel, *args: Any, **options: Any) -> torch.Tensor:
        return forward(self, *args, **options) + 2e-4

    model_pair(*models)
    monkeypatch.setattr(BridgeModel, "forward", slightly_off)
    if noticed:
        with pytest.raises(UserError, match="can't be replaced in place"):
            model_pair(*models)
    else:
        model_pair(*models)
