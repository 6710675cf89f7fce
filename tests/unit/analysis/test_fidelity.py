"""Fidelity and its baselines, by hand and on tiny models."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from pandas.testing import assert_frame_equal

from lensprune.ablation import each_layer
from lensprune.divergence.measure import fidelity
from lensprune.divergence.scores import agreement_with_loss, fidelity_items, fidelity_row
from lensprune.divergence.similarity import angular_distance, layer_similarity
from lensprune.engine.traces import TokenTrace
from lensprune.errors import UserError
from tests.helpers.tiny_models import TEXTS, tiny
from tests.helpers.tolerances import assert_tensors_agree


def trace(logprob: list[float], regret: list[float], kl: list[float]) -> TokenTrace:
    return TokenTrace(np.array(logprob), np.array(regret), np.array(kl))


def test_items_by_hand() -> None:
    clean = [trace([-0.5, -0.5, -0.5, -0.5], [0] * 4, [0] * 4)] * 3
    changed = [
        trace([-0.5, -0.5, -0.5, -0.5], [0, 0, 0, 0], [0.1, 0.1, 0.1, 0.1]),
        trace([-0.5, -0.5, -2.5, -0.5], [0, 0, math.log(2), 0], [0, 0, 2, 0]),
        trace([math.nan, -1, -1, -1], [math.nan, 0, 0, 0], [math.nan, 0, 0, 0]),
    ]
    items = fidelity_items(changed, clean)
    assert items["fidelity"] == pytest.approx([1, 0.5, 0])
    assert list(items["follow"]) == [1, 0, 0]
    assert items["path_share"] == pytest.approx([1, 0.5, 0])
    assert items["kl"][:2] == pytest.approx([0.1, 0.5])
    assert items["loss_change"][:2] == pytest.approx([0, 0.5])
    row = fidelity_row(items, 12)
    assert (row["fidelity"], row["n"], row["n_tokens"]) == (0.5, 3, 12)
    assert row["ci_low"] <= 0.5 <= row["ci_high"]


def test_agreement_with_loss_by_hand() -> None:
    variants = [f"L{i}.skip" for i in range(6)]
    deltas = [-0.6, -0.5, -0.4, -0.3, -0.2, -0.1]
    summary = pd.DataFrame(
        {"variant": variants, "task": "t", "protocol": "generate", "delta": deltas, "at_chance": False}
    )
    scores = pd.DataFrame({"variant": variants, "task": "t", "fidelity": range(6), "kl": [5, 4, 3, 2, 0, 1]})
    frame = agreement_with_loss(scores, summary, {"fidelity": 1, "kl": -1}, resamples=50).set_index("measure")
    assert frame.loc["fidelity", "spearman"] == pytest.approx(1)
    # One neighbouring swap of six: ρ = 1 − 6·2/(6·35), τ = (14 − 1)/15.
    assert frame.loc["kl", "spearman"] == pytest.approx(1 - 12 / 210)
    assert frame.loc["kl", "kendall"] == pytest.approx(13 / 15)
    assert frame.loc["kl", "spearman_low"] <= frame.loc["kl", "spearman"] <= frame.loc["kl", "spearman_high"]
    # Of 720 orders one is perfect: the share of shuffles that reach it is about 1/720, and 95% stay below ρ = 0.83.
    assert frame.loc["fidelity", "p_value"] < 0.01
    assert 0.7 < frame.loc["fidelity", "shuffled_high"] < 0.9
    shuffled = scores.assign(fidelity=[3, 0, 5, 1, 4, 2])
    unrelated = agreement_with_loss(shuffled, summary, {"fidelity": 1}, resamples=50).iloc[0]
    assert unrelated["spearman"] < 0.5
    assert unrelated["p_value"] > 0.1
    unknown = scores.assign(fidelity=math.nan)
    assert list(agreement_with_loss(unknown, summary, {"fidelity": 1, "kl": -1}, resamples=9)["measure"]) == ["kl"]
    with pytest.raises(UserError, match="not a column"):
        agreement_with_loss(scores, summary, {"fidelty": 1})
    assert agreement_with_loss(scores, summary.assign(at_chance=True), {"fidelity": 1}).empty


def test_the_executors_agree_and_a_layer_matters() -> None:
    model = tiny("llama")
    frames = [
        fidelity(
            *(model.module, ["arithmetic"], each_layer(model)),
            **{"limit": 3, "shots": 1, "executor": executor, "whole": True, "progress": False},
        )
        for executor in ("forked", "hooked")
    ]
    assert_tensors_agree(*frames, torch.float32)
    assert list(frames[0]["layer"]) == [0, 1, 2]
    assert (frames[0]["fidelity"] < 1).all()
    assert (frames[0]["follow"] <= frames[0]["fidelity"] + 1e-12).all()


def test_a_model_without_a_right_answer_is_refused() -> None:
    model = tiny("llama")
    with pytest.raises(UserError, match="answers none of 3 items right"):
        fidelity(model.module, ["arithmetic"], each_layer(model), limit=3, shots=1, progress=False)


def test_penalties_that_logits_lack_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")
    asked: dict[str, Any] = {"limit": 2, "shots": 0, "whole": True, "progress": False}
    before = fidelity(model.module, ["arithmetic"], each_layer(model), **asked)
    monkeypatch.setattr(model.module.original_model.generation_config, "repetition_penalty", 1.3)  # type: ignore
    with pytest.raises(UserError, match=r"sets repetition_penalty to 1\.3, and fidelity compares logits without it"):
        fidelity(model.module, ["arithmetic"], each_layer(model), **asked)
    ignored = fidelity(model.module, ["arithmetic"], each_layer(model), **asked, generation_config="none")
    assert_frame_equal(ignored, before)


def test_angles() -> None:
    a = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 1e-4], [1.0, 0.0]], dtype=torch.bfloat16)
    b = torch.tensor([[0.0, 2.0], [-3.0, 0.0], [1.0, 1e-4], [1.0, 1.0]], dtype=torch.bfloat16)
    # Near an angle of 0 the arc cosine of 1 − 1e-7 is 5e-4: the root of float32's precision.
    assert angular_distance(a, b).tolist() == pytest.approx([0.5, 1, 0, 0.25], abs=1e-3)


def test_similarity_does_not_depend_on_padding() -> None:
    model = tiny("gemma3")
    prompts = [model.tokenizer.encode(text) for text in TEXTS]
    together = layer_similarity(model, prompts)
    apart = [layer_similarity(model, [prompt]) for prompt in prompts]
    weights = np.array([len(prompt) for prompt in prompts])
    influence = np.average([frame["block_influence"] for frame in apart], axis=0, weights=weights)
    assert_tensors_agree(together["block_influence"], influence, torch.float32, size=1)
    angle = np.mean([frame["angular_distance"] for frame in apart], axis=0)
    # The slope of the arc cosine multiplies rounding by 1 / sin.
    slope = 1 / np.sin(np.pi * angle.min())
    assert_tensors_agree(together["angular_distance"], angle, torch.float32, size=slope)
    assert (together["block_influence"] > 0.01).all()
    with pytest.raises(UserError, match="needs prompts"):
        layer_similarity(model, [])
