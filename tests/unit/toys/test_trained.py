"""The trio that ships: it does its tasks, and exchanging weights between base and distilled model moves accuracy."""

from __future__ import annotations

import pytest
import torch

import lensprune as lp
from lensprune.errors import UserError
from lensprune.models import BUNDLED, as_hooked_model, load_model
from lensprune.models.sources.base import LoadOptions
from lensprune.models.sources.packaged import PackagedModel
from lensprune.packaged import data_folder
from lensprune.toys.study import TASKS

RETRIEVAL, CHAINS = TASKS
ONE_LAYER = lp.VariantSelection("layers", layers="0")
NAMES = ("toy-teacher", "toy-base", "toy-distilled", "toy-thinker")


def clean_accuracy(model: str, task: str) -> float:
    run = lp.sweep(model, [task], ["generate"], ONE_LAYER, limit=100, device="cpu", progress=False)
    summary = run.summary()
    return float(summary[summary["variant"] == "clean"]["accuracy"].iloc[0])


@pytest.mark.parametrize("name", NAMES)
def test_loads_by_its_name_with_the_hash_checked(name: str) -> None:
    model = as_hooked_model(load_model(name, device="cpu"))
    assert model.facts.source == f"packaged:{name}"
    assert (model.facts.n_heads, model.facts.n_key_value_heads) == (4, 2)
    assert BUNDLED[name].folder().name == name
    with pytest.raises(UserError, match="install lensprune again"):
        PackagedModel(name, "0" * 64).load(LoadOptions(torch.float32, torch.device("cpu")))
    with pytest.raises(UserError, match="not in the package's data"):
        PackagedModel("toy-nobody", "0" * 64).folder()


def test_the_toys_are_small() -> None:
    assert sum(path.stat().st_size for path in (data_folder() / "toys").rglob("*.*")) <= 6e6


@pytest.mark.slow
def test_the_distilled_model_retrieves_and_calculates() -> None:
    assert clean_accuracy("toy-distilled", RETRIEVAL) >= 0.9
    assert clean_accuracy("toy-distilled", CHAINS) >= 0.8


@pytest.mark.slow
def test_the_base_retrieves_but_answers_few_chains() -> None:
    assert clean_accuracy("toy-base", RETRIEVAL) >= 0.9
    assert clean_accuracy("toy-base", CHAINS) <= 0.5


@pytest.mark.slow
def test_distilling_brought_worked_steps() -> None:
    run = lp.measure_replacement(
        "toy-base", "toy-distilled", [CHAINS], ["generate"], component="layer", mode="cumulative", limit=60,
        device="cpu", progress=False,
    )  # fmt: skip
    shares = run.shares()
    assert bool(shares["gain_is_clear"].all())
    assert shares["gain"].iloc[0] > 0.2
    # Without the distilled blocks the gain is gone; with them alone it is not all there: embeddings learnt too.
    whole = shares[shares["part"] == shares["part"].iloc[-1]].set_index("direction")
    assert whole.loc["backward", "share"] > 0.5
    assert 0 < whole.loc["forward", "share"] < whole.loc["backward", "share"]
