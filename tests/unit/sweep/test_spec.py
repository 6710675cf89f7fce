"""The spec: what is the same sweep, and where two differ."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from lensprune.ablation.components import MLP, Attention, Head, KVGroup, Layer
from lensprune.ablation.variants import CLEAN, Ablation, Variant
from lensprune.errors import UserError
from lensprune.runs.spec import FORMAT, ExecutionSpec, SweepSpec
from lensprune.runs.spec_difference import first_difference
from lensprune.runs.variant_json import variant_from_json, variant_to_json
from tests.helpers.made_cells import skip, spec


def test_spec_survives_json() -> None:
    original = spec(protocols=("default", "generate"), execution=ExecutionSpec(model="tiny", command="lensprune sweep"))
    assert SweepSpec.from_json(original.to_json()) == original


def test_how_it_ran_is_not_part_of_the_digest() -> None:
    one = spec(execution=ExecutionSpec(executor="hooked", batch_tokens=10, data_dir="a"))
    other = replace(
        one, model="same model, moved", execution=ExecutionSpec(executor="other", batch_tokens=99, data_dir="b")
    )
    assert one.digest == other.digest
    assert first_difference(one, other) is None


def test_asking_for_the_same_items_in_other_words_is_the_same_sweep() -> None:
    assert spec(limit=None).digest == spec(limit=4).digest
    assert spec().digest == spec(leave_out_repeated=True).digest


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dtype": "bfloat16"}, ["dtype", "float32", "bfloat16"]),
        (
            {"template_date": "2031-01-02", "conditions": (replace(spec().conditions[0], prompts_hash="q" * 64),)},
            ["the chat template's date (template_date)", "null there", "2031-01-02"],
        ),
        ({"variants": tuple(variant_to_json(v) for v in (CLEAN, skip(0)))}, ["variants", "3 there", "2 here"]),
        ({"protocols": ("default", "generate")}, ["protocols", "generate"]),
        ({"tasks": (replace(spec().tasks[0], shots=3),)}, ["tasks of t", "shots", "0 there", "3 here"]),
        ({"conditions": (replace(spec().conditions[0], prompts_hash="q" * 64),)}, ["prompts", "t default"]),
    ],
)
def test_first_difference_names_what_changed(changes: dict[str, object], words: list[str]) -> None:
    difference = first_difference(spec(), replace(spec(), **changes))  # type: ignore[arg-type]
    assert difference is not None
    assert all(word in difference for word in words), difference


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-20],
        lambda text: "[]",
        lambda text: "null",
        lambda text: text.replace(f'"format": {FORMAT}', '"format": 99'),
        lambda text: text.replace("float32", "float64"),
        lambda text: json.dumps({**json.loads(text), "extra": 1}),
        lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != "tasks"}),
        lambda text: json.dumps({**json.loads(text), "variants": [1, 2]}),
        lambda text: json.dumps({**json.loads(text), "tasks": None}),
        lambda text: json.dumps({**json.loads(text), "leave_out_repeated": 1}),
        lambda text: json.dumps({**json.loads(text), "limit": True}),
        lambda text: json.dumps({**json.loads(text), "template_date": "2031-01-02"}),
        lambda text: "[" * 100_000,
    ],
)
def test_a_changed_spec_file_is_refused(damage: object) -> None:
    with pytest.raises(UserError, match=r"spec\.json"):
        SweepSpec.from_json(damage(spec().to_json()))  # type: ignore[operator]


@pytest.mark.parametrize(
    "ablation",
    [
        Ablation(Layer(3), "skip"),
        Ablation(Attention(0), "mean"),
        Ablation(MLP(1), "zero"),
        Ablation(Head(2, 3), "resample"),
        Ablation(KVGroup(1, 0), "zero"),
    ],
)
def test_variants_survive_json(ablation: Ablation) -> None:
    variant = Variant("any name", (ablation, Ablation(Layer(0), "skip")))
    assert variant_from_json(json.loads(json.dumps(variant_to_json(variant)))) == variant


def _scaled(factor: float, shift: torch.Tensor | None = None):
    def hook(activation: torch.Tensor, hook: object) -> torch.Tensor:
        return activation * factor + (0 if shift is None else shift)

    return hook


def test_hooks_differ_by_what_they_enclose() -> None:
    def described(function: object) -> object:
        return variant_to_json(Variant("v", (), (("blocks.0.hook_resid_pre", function),)))["hooks"]  # type: ignore[arg-type]

    assert described(_scaled(0.5)) == described(_scaled(0.5))
    assert described(_scaled(0.5)) != described(_scaled(0.25))
    ones = torch.ones(2, dtype=torch.bfloat16)
    assert described(_scaled(0.5, ones)) == described(_scaled(0.5, ones.clone()))
    assert described(_scaled(0.5, ones)) != described(_scaled(0.5, ones * 2))
    assert described(_scaled(0.5, torch.tensor(1.0))) != described(_scaled(0.5, torch.tensor(2.0)))


def test_hooks_can_not_come_from_a_file() -> None:
    data = variant_to_json(Variant("v", (), (("blocks.0.hook_resid_pre", _scaled(1.0)),)))
    with pytest.raises(UserError, match="written in Python"):
        variant_from_json(data)


def test_what_a_task_declares_is_kept_and_changes_no_digest() -> None:
    [task] = spec().tasks
    declared = replace(spec(), tasks=(replace(task, kind="reasoning", closed_book="other"),))
    assert declared.digest == spec().digest
    assert first_difference(declared, spec()) is None
    assert SweepSpec.from_json(declared.to_json()).tasks[0].closed_book == "other"
    for name, value in (("kind", 3), ("closed_book", ["other"])):
        with pytest.raises(UserError, match=f"{name} is {type(value).__name__}"):
            SweepSpec.from_json(json.dumps({**json.loads(spec().to_json()), "tasks": [{**vars(task), name: value}]}))


@pytest.mark.parametrize("value", [False, "3", 1.5])
def test_how_it_ran_is_checked_by_its_type(value: object) -> None:
    data = json.loads(spec().to_json())
    with pytest.raises(UserError, match=f"batch_tokens is {type(value).__name__}"):
        SweepSpec.from_json(json.dumps({**data, "execution": {**data["execution"], "batch_tokens": value}}))
