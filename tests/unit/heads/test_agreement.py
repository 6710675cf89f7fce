"""Rankings of heads by several ways of removing them."""

from __future__ import annotations

import pytest

from lensprune.errors import UserError
from lensprune.heads import importance_agreement
from tests.helpers.tiny_models import tiny


def test_ways_are_compared_on_the_same_heads() -> None:
    model = tiny("llama")
    found = importance_agreement(model, "facts", "continuation", limit=4, shots=1, k=3, progress=False)
    ways = ["zero", "mean", "resample", "estimate:zero", "estimate:mean", "estimate:resample"]
    assert list(found.effects.columns) == ["task", "protocol", "layer", "head", *ways]
    assert len(found.effects) == model.facts.n_layers * model.facts.n_heads
    assert not found.effects[ways].isna().any().any()
    assert len(found.table) == 15
    assert found.table["spearman"].between(-1, 1).all()
    # The columns are those of a sweep and of its estimates, in its order of heads.
    [zero] = found.run.effects(ablation="zero", measure="logprob_margin")
    assert found.effects["zero"].tolist() == pytest.approx(zero.effects.tolist())
    assert found.effects["layer"].tolist() == list(zero.layers)


def test_one_way_alone_is_refused() -> None:
    with pytest.raises(UserError, match="give two, or one with its estimate"):
        importance_agreement(tiny("llama"), "facts", ablations=["zero"], estimates=False)
