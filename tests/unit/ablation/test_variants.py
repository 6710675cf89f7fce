"""Names, enumerations and ranges."""

from __future__ import annotations

import pytest

from lensprune.ablation import (
    CLEAN,
    Ablation,
    Head,
    KVGroup,
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
from lensprune.ablation.variants import as_variants, variant_named
from lensprune.errors import UserError
from lensprune.sweeps.options import SweepOptions
from lensprune.sweeps.selection import VariantSelection
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
        (lambda m: Ablation(Head(0, 0), "skip"), "zero, mean, resample, optimal or cut"),
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


@pytest.mark.parametrize(
    "variant",
    [
        *each_layer(tiny("llama"), layers=[2]),
        *each_head(tiny("llama"), "mean", layers=[1], heads=[3]),
        *each_kv_group(tiny("llama"), layers=[0], groups=[1]),
        *enumerate_variants(tiny("llama"), "attention", layers=[1]),
        *enumerate_variants(tiny("llama"), "mlp", "resample", [0]),
        layer_range(tiny("llama"), 0, 2),
        as_variants([[Ablation(Head(1, 0), "zero"), Ablation(Head(2, 3), "zero")]])[0],
    ],
    ids=lambda variant: variant.name,
)
def test_a_name_gives_the_variant_of_that_name(variant: Variant) -> None:
    assert variant_named(variant.name) == variant


def test_what_stands_for_variants() -> None:
    skip, zero = Ablation(Layer(1), "skip"), Ablation(KVGroup(0, 1), "zero")
    one = Variant("mine", (skip,))
    assert as_variants(one) == (one,)
    assert as_variants(skip) == as_variants([skip]) == as_variants("L1.skip") == (Variant("L1.skip", (skip,)),)
    assert [v.name for v in as_variants([one, skip, "L0.mlp.zero"])] == ["mine", "L1.skip", "L0.mlp.zero"]
    [both] = as_variants([[skip, zero]])
    assert (both.name, both.ablations) == ("L1.skip+L0.KV1.zero", (skip, zero))
    assert Variant("mine", [skip, zero]).ablations == (skip, zero)  # type: ignore[arg-type]
    assert Variant("mine", skip).ablations == (skip,)  # type: ignore[arg-type]
    assert hash(Variant("mine", [skip])) == hash(Variant("mine", (skip,)))  # type: ignore[arg-type]


def test_a_sweep_takes_them_all() -> None:
    def given(variants: object) -> object:
        return SweepOptions.given("facts", "default", variants).variants  # type: ignore[arg-type]

    assert given("heads") == VariantSelection(over="heads")
    assert (
        given("L1.skip")
        == given(["L1.skip"])
        == given(Ablation(Layer(1), "skip"))
        == (*each_layer(tiny("llama"), layers=[1]),)
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["L1skip"], "unknown variant 'L1skip': expected a place and an ablation, like L3, L3.attention, L3.mlp"),
        (["L1.H2.H3.zero"], "unknown variant"),
        (["L1.skpi"], "did you mean skip"),
        (["L1.H0.skip"], "L1.H0 is not one: use zero"),
        (["L4-2.skip"], "the first layer must not exceed the last"),
        ([Head(1, 2)], r"says where but not how: use Ablation\(Head\(layer=1, head=2\), 'zero'\)"),
        (Head(1, 2), "says where but not how"),
        ([3], "3 is not a change of the model: expected a Variant, an Ablation, or a name like L12.skip"),
        (3, "3 is not a change of the model"),
        ([[]], r"\[\] is not a change"),
    ],
)
def test_what_stands_for_none_is_refused(given: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        as_variants(given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ablations": [Layer(1)]}, "says where but not how"),
        ({"ablations": ["L1.skip"]}, "'L1.skip' is not a change"),
        ({"ablations": 5}, "ablations is 5, expected a list"),
        ({"hooks": ("blocks.0.hook_resid_pre", print)}, r"is not a hook: expected \(hook name, function\)"),
        ({"hooks": [("blocks.0.hook_resid_pre", "print")]}, "is not a hook"),
        ({"hooks": None}, "hooks is None, expected a list"),
    ],
)
def test_a_variant_of_something_else_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Variant("mine", **changes)  # type: ignore[arg-type]


def test_names_that_a_run_has_can_be_given_back() -> None:
    given = as_variants(["clean", "L01.skip", ["L1.skip", "L2.skip"], "L0.H00.zero"])
    assert [variant.name for variant in given] == ["clean", "L1.skip", "L1+L2.skip", "L0.H0.zero"]
    assert given[0].is_clean
    assert given[1] == variant_named("L1.skip")
    assert given[2] == variant_named("L1+L2.skip")
