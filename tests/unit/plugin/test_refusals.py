"""What a plug-in gets wrong is refused: names that are taken, parts and values that do not fit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import lensprune as lp
from lensprune.ablation import components, kinds
from lensprune.engine import HookedExecutor, executor_info, make_executor
from lensprune.errors import LensPruneError, UserError
from lensprune.runs.variant_json import variant_from_json, variant_to_json
from tests.helpers.plugin import refused
from tests.helpers.tiny_models import likelihood_requests, tiny


def test_a_folder_begun_with_another_definition_is_refused(folder: Path, tmp_path: Path) -> None:
    [variant] = lp.VariantSelection("mlp-halves", layers="1", heads="0").resolve(tiny("llama").facts)
    data = variant_to_json(variant)
    assert variant_from_json(data) == variant
    assert len(data["ablations"][0]["definition"]) == 64
    row = kinds._KINDS._rows["halve"]
    kinds._KINDS._rows["halve"] = replace(row, value=lambda site: site.activation / 3)
    try:
        assert variant_to_json(variant)["ablations"][0]["definition"] != data["ablations"][0]["definition"]
    finally:
        kinds._KINDS._rows["halve"] = row
    assert variant_to_json(variant) == data
    assert "definition" not in variant_to_json(lp.each_layer(tiny("llama"))[0])["ablations"][0]


def test_what_does_not_fit_is_refused() -> None:
    model = tiny("llama")
    requests = likelihood_requests(model)[:2]
    with pytest.raises(UserError, match=r"MLP half 2 of L1.mlp2 is out of range"):
        list(
            make_executor("forked", model).run(
                requests, [lp.Variant("x", (lp.Ablation(components.part_named("mlp_half").component(1, 2), "zero"),))]
            )
        )
    with pytest.raises(UserError, match="twice-mean needs reference activations"):
        list(HookedExecutor(model).run(requests, lp.each_mlp(model, "twice-mean", [0])))

    @lp.register_ablation(reads_activation=False)
    def liar(site: lp.AblatedSite) -> torch.Tensor:
        return site.activation

    @lp.register_ablation
    def flat(site: lp.AblatedSite) -> torch.Tensor:
        return site.activation.sum(-1)

    for executor in ("hooked", "forked"):
        with pytest.raises(LensPruneError, match=r"L0: its ablation reads the activation"):
            list(make_executor(executor, model).run(requests, lp.each_layer(model, "liar", [0])))
        with pytest.raises(LensPruneError, match=r"flat gives a value of shape"):
            list(make_executor(executor, model).run(requests, lp.each_mlp(model, "flat", [0])))


@dataclass(frozen=True, order=True)
class Unregistered(lp.Component):
    pass


@pytest.mark.parametrize("executor", ["hooked", "forked"])
def test_an_unknown_part_or_kind_is_refused_never_dropped(executor: str) -> None:
    model = tiny("llama")
    requests = likelihood_requests(model)[:2]
    with pytest.raises(UserError, match="not a component that can be ablated"):
        lp.Ablation(Unregistered(1), "zero")
    with pytest.raises(UserError, match=r"unknown ablation 'hlave': did you mean halve"):
        lp.Ablation(lp.MLP(1), "hlave")
    for component, kind in ((Unregistered(1), "zero"), (lp.MLP(1), "hlave")):
        # Past the checks of the constructor, as a copy from another process comes.
        ablation = object.__new__(lp.Ablation)
        object.__setattr__(ablation, "component", component)
        object.__setattr__(ablation, "kind", kind)
        with pytest.raises(UserError, match=r"not a component|unknown ablation"):
            list(make_executor(executor, model).run(requests, [lp.Variant("x", (ablation,))]))


def test_the_fast_path_itself_refuses_an_unknown_part() -> None:
    from lensprune.engine.edits import ALL, edits_by_layer

    model = tiny("llama")
    ablation = object.__new__(lp.Ablation)
    object.__setattr__(ablation, "component", Unregistered(1))
    object.__setattr__(ablation, "kind", "zero")
    with pytest.raises(UserError, match="not a component that can be ablated"):
        edits_by_layer([(lp.Variant("x", (ablation,)), ALL)], None, model.facts)


def test_names_that_are_taken_are_refused() -> None:
    @dataclass(frozen=True, order=True)
    class Other(lp.Component):
        pass

    def zero(site: lp.AblatedSite) -> torch.Tensor:
        return site.full(0)

    def halve(site: lp.AblatedSite) -> torch.Tensor:
        return site.activation / 3

    part: Any = lp.register_part
    slot = lp.Slot.MLP
    refused(lambda: lp.register_ablation(zero), r"ablation name 'zero' is taken by lensprune\.")
    refused(lambda: lp.register_ablation(halve), r"ablation name 'halve' is taken by tests\.")
    refused(lambda: part("mlp", over="x", slot=slot, label="x")(Other), r"component name 'mlp' is taken by lensprune\.")
    refused(lambda: part("other", over="mlp", slot=slot, label="x")(Other), r"over 'mlp' is the part 'mlp' already")
    refused(lambda: part("other", over="heads-and-groups", slot=slot, label="x")(Other), r"is heads and groups already")
    refused(lambda: part("o", over="o", slot=slot, label="x", size=lambda facts: 2)(Other), r"fields layer: expected")
    refused(lambda: part("a b", over="o", slot=slot, label="x")(Other), r"component name 'a b': start with a letter")
    score: Any = lambda fmt, item, responses: None  # noqa: E731
    refused(lambda: lp.register_protocol(name="generate")(score), r"protocol name 'generate' is taken by lensprune\.")
    refused(lambda: lp.register_protocol(name="x", measure="loss")(score), r"unknown measure 'loss'")
    refused(lambda: lp.register_executor("hooked")(score), r"executor name 'hooked' is taken by lensprune\.")
    refused(lambda: lp.register_executor("ray")(score), "executor name 'ray' is reserved")
    assert executor_info("hooked").shares_work is False
    assert kinds.ablation_kind("zero").value is None
