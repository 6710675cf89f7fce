"""Removing the planted induction heads costs the second repeat; removing any other costs nothing."""

from __future__ import annotations

from typing import Any

import pytest
from scipy.stats import mannwhitneyu, spearmanr

from lensprune.errors import UserError
from lensprune.heads import head_scores, repeat_effects
from tests.helpers.planted.circuits import model_of
from tests.helpers.planted.models import SHAPES


@pytest.mark.parametrize("shape", SHAPES)
def test_planted_induction_heads_and_no_others(shape: str) -> None:
    found = repeat_effects(model_of("induction", shape), length=6)
    needed = found[found["effect"] < -1]
    assert set(zip(needed["layer"], needed["head"], strict=True)) == {(0, 1), (1, 2)}
    assert found["effect"].drop(needed.index).abs().max() < 1e-3


def test_only_zero_needs_no_reference() -> None:
    with pytest.raises(UserError, match="use zero"):
        repeat_effects(model_of("induction", "llama"), ablation="mean")


@pytest.mark.slow
def test_induction_heads_of_the_real_model_are_needed(smollm2: Any) -> None:
    effects = repeat_effects(smollm2, sequences=1)
    scores = head_scores(smollm2, ["induction"], sequences=1, length=25)
    joined = effects.merge(scores[scores["score"] == "induction"], on=["layer", "head"])
    best = joined.sort_values("value", ascending=False).head(10)
    others = joined.drop(best.index)["effect"]
    rho = spearmanr(joined["value"], -joined["effect"])[0]
    test = mannwhitneyu(best["effect"], others, alternative="less")
    print(
        f"second repeat, nats a token: median of the ten best induction heads {best['effect'].median():.3f}, "
        f"of the others {others.median():.3f} (p {test.pvalue:.1g}); Spearman with the score over all heads {rho:.2f}"
    )
    # Over all heads the score says nothing: those needed most write what induction heads read, or do something else.
    assert best["effect"].median() < others.quantile(0.25)
    assert test.pvalue < 0.01
