"""Base and distilled model compared: known concentrations, known answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lensprune.analysis.concentration_change import (
    OVER_SEEDS_COLUMNS,
    PER_SEED_COLUMNS,
    Comparison,
    compare,
    over_seeds,
)
from lensprune.analysis.head_effects import ItemEffects
from lensprune.errors import UserError
from lensprune.toys.recipe import Recipe
from lensprune.toys.study import robustness_curves, study, study_table

TINY = Recipe(
    d_model=32, d_ff=48, n_layers=2, batch_tokens=512,
    teacher_steps=2, start_steps=2, base_steps=2, distilled_steps=2,
)  # fmt: skip


def effects(*sizes: float, n: int = 100) -> ItemEffects:
    """Parts that lose a share of the items, each the first ones of a block of its own."""
    differences = np.zeros((n, len(sizes)))
    for part, size in enumerate(sizes):
        differences[: round(size * n), part] = -1
    names = tuple(f"L{i}" for i in range(len(sizes)))
    return ItemEffects(
        task="t", protocol="generate", measure="correct", variants=names, layers=tuple(range(len(sizes))),
        heads=(-1,) * len(sizes), differences=differences, clusters=None, at_chance=False,
        item_ids=tuple(str(i) for i in range(n)),
    )  # fmt: skip


def comparison(base: ItemEffects, distilled: ItemEffects, seed: int = 0) -> Comparison:
    return Comparison("distilled", seed, "layer", base, distilled, 0.5, 0.9)


def test_one_part_against_all_parts() -> None:
    found = compare(comparison(effects(0.8, 0, 0, 0), effects(0.5, 0.5, 0.5, 0.5)))
    assert tuple(found.columns) == PER_SEED_COLUMNS
    gini, parts = (found[found["statistic"] == name].iloc[0] for name in ("gini", "participation_ratio"))
    assert (gini["base"], gini["value"]) == pytest.approx((0.75, 0))
    assert (parts["base"], parts["value"]) == pytest.approx((1, 4))
    assert gini["ci_high"] < 0 < parts["ci_low"]
    assert gini["difference"] == pytest.approx(-0.75)


def test_the_same_model_twice_differs_in_nothing() -> None:
    own = effects(0.8, 0.3, 0.1)
    found = compare(comparison(own, own))
    assert (found[["difference", "ci_low", "ci_high"]] == 0).all(axis=None)
    assert set(over_seeds(found)["answer"]) == {"not resolved"}


def test_no_effect_anywhere_says_nothing() -> None:
    found = compare(comparison(effects(0, 0), effects(0.5, 0.1)))
    assert found["difference"].isna().all()
    assert set(over_seeds(found)["answer"]) == {"not resolved"}
    assert set(over_seeds(found)["n_seeds"]) == {0}


def test_other_parts_are_refused() -> None:
    with pytest.raises(UserError, match="same parts"):
        compare(comparison(effects(0.5), effects(0.5, 0.5)))


def per_seed(differences: list[float], statistic: str) -> pd.DataFrame:
    rows = [
        ["distilled", "t", "layer", statistic, seed, 10, 4, 0.5, 0.9, 1.0, 1.0 + difference, difference, 0.0, 0.0]
        for seed, difference in enumerate(differences)
    ]
    return pd.DataFrame(rows, columns=list(PER_SEED_COLUMNS))


@pytest.mark.parametrize(
    ("differences", "statistic", "answer"),
    [
        ([-0.3, -0.32, -0.28], "gini", "spreads"),
        ([0.3, 0.32, 0.28], "gini", "concentrates"),
        ([1.0, 1.1, 0.9], "participation_ratio", "spreads"),
        ([-1.0, -1.1, -0.9], "participation_ratio", "concentrates"),
        ([-0.3, 0.3, 0.1], "gini", "not resolved"),
        ([-0.3], "gini", "not resolved"),
    ],
)
def test_seeds_are_the_units(differences: list[float], statistic: str, answer: str) -> None:
    found = over_seeds(per_seed(differences, statistic))
    assert tuple(found.columns) == OVER_SEEDS_COLUMNS
    assert found["answer"].tolist() == [answer]
    assert found["difference"].iloc[0] == pytest.approx(np.mean(differences))
    if len(differences) == 3:
        # 4.303 is the 97.5% point of t with two degrees of freedom.
        half = 4.303 * np.std(differences, ddof=1) / np.sqrt(3)
        assert found["ci_high"].iloc[0] - found["difference"].iloc[0] == pytest.approx(half, rel=1e-3)


@pytest.mark.slow
def test_a_study_is_written_and_goes_on(tmp_path: Path) -> None:
    lines: list[str] = []
    arguments = {"recipe": TINY, "limit": 3, "progress": False, "log": lines.append}
    first = study([0, 1], tmp_path, **arguments)  # type: ignore[arg-type]
    assert len(first.per_seed) == 2 * 2 * 2 * 2 * 2
    assert all((tmp_path / name).exists() for name in ("answers.csv", "per_seed.csv", "layers.csv", "layers.png"))
    # One teacher serves all seeds.
    assert {line.split(" teacher")[0] for line in lines if " teacher step" in line} == {"seed 0"}
    assert "not resolved" in study_table(first)
    before = list(lines)
    again = study([0, 1], tmp_path, **arguments)  # type: ignore[arg-type]
    assert not any(" step " in line for line in lines[len(before) :])
    pd.testing.assert_frame_equal(again.layers, first.layers)
    assert len(robustness_curves(again.layers)) == 2
    with pytest.raises(UserError, match="distinct seeds"):
        study([1, 1], tmp_path, **arguments)  # type: ignore[arg-type]
