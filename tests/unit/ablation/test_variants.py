"""Names, enumerations and ranges."""

from __future__ import annotations

import pytest

from lensprune.ablation import (
    CLEAN,
    Ablation,
    Head,
    Layer,
    Variant,
    cumulative,
    each_head,
    each_kv_group,
    each_layer,
    enumerate_variants,
    layer_range,
    parse_indices,
)
from lensprune.errors import UserError
from tests.helpers.tiny_models import tiny


def test_enumerations_cover_the_model_once() -> None:
    model = tiny("llama")
    assert [v.name for v in each_layer(model)] == ["L0.skip", "L1.skip", "L2.skip"]
    assert len({v.name for v in each_head(model)}) == 12
    assert [v.name for v in each_kv_group(model, layers=[1])] == ["L1.KV0.zero", "L1.KV1.zero"]
    assert [v.name for v in enumerate_variants(model, "attention", layers=[2])] == ["L2.attention.zero"]
    assert [v.name for v in enumerate_variants(model, "mlp", "mean", [0])] == ["L0.mlp.mean"]
    assert [v.name for v in enumerate_variants(model, "heads", layers=[0], heads=[3])] == ["L0.H3.zero"]


def test_ranges_and_cumulative_removal() -> None:
    model = tiny("llama")
    assert layer_range(model, 1, 2).name == "L1-2.skip"
    assert [v.name for v in cumulative(model, start="top")] == ["L2.skip", "L1-2.skip", "L0-2.skip"]
    assert [v.name for v in cumulative(model, start="bottom", at_most=2)] == ["L0.skip", "L0-1.skip"]


def test_table_columns() -> None:
    model = tiny("llama")
    head = each_head(model, layers=[1], heads=[2])[0]
    assert (head.component, head.layer, head.head, head.ablation) == ("head", 1, 2, "zero")
    assert (CLEAN.component, CLEAN.layer, CLEAN.head, CLEAN.ablation) == ("", None, None, "")
    assert layer_range(model, 0, 1).component == "range"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: each_layer(m, layers=[3]), "layers 0 to 2"),
        (lambda m: each_head(m, heads=[4]), "heads 0 to 3"),
        (lambda m: each_kv_group(m, groups=[2]), "key/value groups 0 to 1"),
        (lambda m: each_layer(m, "skp"), "skip"),
        (lambda m: enumerate_variants(m, "layer"), "layers"),
        (lambda m: enumerate_variants(m, "layers", heads=[1]), "use over heads, kv-groups"),
        (lambda m: Ablation(Head(0, 0), "skip"), "zero, mean, resample or optimal"),
        (lambda m: layer_range(m, 2, 1), "empty"),
        (lambda m: cumulative(m, at_most=9), "choose 1 to 3"),
        (lambda m: Ablation(Layer(0), "oblate"), "unknown ablation"),
        (
            lambda m: Variant(
                "two", (Ablation(Layer(1), "skip"), Ablation(Head(0, 1), "zero"), Ablation(Layer(1), "mean"))
            ),
            "'two' ablates L1 by skip and mean",
        ),
    ],
)
def test_errors_name_the_valid_choice(call, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call(tiny("llama"))


def test_parse_indices() -> None:
    assert parse_indices("0,2-4,3", 6) == [0, 2, 3, 4]
    for text, message in [("a", "'a'"), ("1-", "1-"), ("3-1", "empty"), ("6", "0 to 5"), ("", "''")]:
        with pytest.raises(UserError, match=message):
            parse_indices(text, 6)
