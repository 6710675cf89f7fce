"""Controls of named roles by hand, patches by both executors, and stages that are kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lensprune.attribution.sites import PatchTarget
from lensprune.models.base import ModelFacts
from lensprune.primitives.chains import draw_chains
from lensprune.primitives.effects import TokenLosses
from lensprune.primitives.patches import PatchEffects, measure_patches
from lensprune.primitives.probes import TESTS, Probe, make_probes
from lensprune.primitives.stages import Stages
from lensprune.primitives.survival import same_answer, stable_chains, stable_pairs, survival_table
from lensprune.primitives.verdicts import Thresholds
from tests.helpers.planted.reasoner import WORDING, reasoner

UNITS = 10
KINDS = ("operand", "result", "carried", "words")
TOKENS = (3, 7, 7, 9)


def losses(cost: np.ndarray) -> TokenLosses:
    """Solutions of four tokens, of which the result is repeated; `cost`: [unit, token, variant]."""
    unit = np.repeat(np.arange(len(cost)), len(KINDS))
    kind = np.array(KINDS * len(cost))
    return TokenLosses(cost.reshape(len(kind), -1), unit, kind, np.ones(len(kind), bool))


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.1, shape)


def test_a_part_that_prefers_the_answer_is_not_one_that_computes_it() -> None:
    """Head 0 costs 2 nats where the 7 is computed; head 1 costs 2 nats wherever a 7 is written."""
    cost = noise(UNITS, 4, 2)
    cost[:, 1, 0] += 2
    cost[:, [1, 2], 1] += 2
    tokens = np.tile(TOKENS, UNITS)
    difference, p = same_answer(losses(cost), tokens, "result", tests=2)
    assert difference == pytest.approx([2, 0], abs=0.15)
    assert p[0] == pytest.approx(1 / 2**UNITS)
    assert p[1] > 0.05
    # An operand whose number is written once has nothing to be compared with.
    assert np.isnan(same_answer(losses(cost), tokens, "operand", tests=2)[0]).all()


def test_an_effect_of_one_chain_is_not_stable() -> None:
    """Head 0 costs every result 1 nat, head 1 one of ten results 10 nats, head 2 results 1 nat and operands 5."""
    cost = noise(UNITS, 4, 3)
    cost[:, 1, 0] += 1
    cost[0, 1, 1] += 10
    cost[:, :2, 2] += [5, 1]
    text = TokenLosses(noise(24, 3), np.repeat(np.arange(8), 3), np.full(24, "text"), np.ones(24, bool))
    every, one, broad = stable_chains(losses(cost), text, "result", 0.1)
    assert every == 1
    # Drawn in 1 − 0.9¹⁰ of the bootstraps.
    assert one == pytest.approx(1 - 0.9**UNITS, abs=0.1)
    assert broad < 0.1
    # The same of pairs: the first place moves half of each chain's change, the second all of one chain's.
    probes = [Probe("result", (1,), (2,), 1, 2, (3,), True, unit) for unit in range(UNITS)]
    moved = np.stack([np.full(UNITS, 0.5), np.eye(UNITS)[0]], axis=1)
    patched = PatchEffects(np.ones(UNITS, bool), np.ones(UNITS), moved, moved)
    half, lone = stable_pairs(probes, patched, "result", 0.1)
    assert half == 1
    assert lone == pytest.approx(1 - 0.9**UNITS, abs=0.05)
    assert np.isnan(stable_pairs(probes, patched, "operand", 0.1)).all()


def test_each_control_is_named_that_a_role_falls_to() -> None:
    columns = ["component", "layer", "head", "role", "test", "class"]
    named = pd.DataFrame([("head", 0, i, "computes result", "result", "result") for i in range(3)], columns=columns)
    evidence = named.assign(effect=1.0, share=0.5, named=[True, True, False])
    other = evidence.assign(share=[0.5, np.nan, 0.5])
    table = survival_table(
        named,
        {"shuffled": evidence.assign(named=[False, False, True]), "placebo": evidence.iloc[:0]},
        {"other_range": other},
        {
            "same_answer": [1.0, np.nan, 1.0],
            "same_answer_p": [0.001, np.nan, 0.5],
            "stable_chains": [1.0, 0.5, 1.0],
            "stable_pairs": [0.95, 1.0, np.nan],
        },
        Thresholds(),
    )
    assert table["fell"].tolist() == ["", "bootstraps of chains", "shuffled classes, same answer, other range"]
    assert table["untested"].tolist() == [
        "other wording",
        "same answer, other wording, other range",
        "bootstraps of pairs, other wording",
    ]


@pytest.mark.parametrize("shape", ["llama", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_patches_on_trees_are_those_of_whole_rows(shape: str) -> None:
    model = reasoner(shape)
    probes, _ = make_probes(model, draw_chains(6, 3, 9, False, 0, distinct=True), WORDING, "")
    places = [PatchTarget("head", layer, head, -1) for layer, head in ((0, 0), (1, 2), (2, 4))]
    places += [PatchTarget("mlp", 1, None, -1), PatchTarget("head", 2, 6, -1)]
    forked, hooked = (measure_patches(model, probes, places, executor=name) for name in ("forked", "hooked"))
    assert (forked.counts == hooked.counts).all()
    for name in ("whole", "effect", "placebo"):
        got, right = getattr(forked, name), getattr(hooked, name)
        np.testing.assert_allclose(got, right, atol=1e-4)
    # Heads of each layer move something; what doesn't count is not patched.
    assert (np.nanmax(np.abs(forked.effect), axis=0)[[0, 1, 2, 4]] > 1).all()
    assert np.isnan(forked.effect[~forked.counts]).all()
    assert {p.test for p, used in zip(probes, np.isfinite(forked.effect[:, 0]), strict=True) if used} < set(TESTS)


def test_stages_are_kept_by_what_determines_them(tmp_path: Path) -> None:
    calls: list[int] = []

    def compute() -> dict[str, np.ndarray]:
        calls.append(1)
        return {"loss": np.eye(2), "kind": np.array(["a", "bc"])}

    facts = reasoner("llama").facts

    def get(given: object, facts: ModelFacts = facts) -> int:
        arrays = Stages(tmp_path / "stages", facts).get("text", given, compute)
        assert arrays["kind"].tolist() == ["a", "bc"]
        assert (arrays["loss"] == np.eye(2)).all()
        return len(calls)

    assert [get((1, "x")), get((1, "x")), get((1, "y")), get((1, "x"), replace(facts, dtype="float64"))] == [1, 1, 2, 3]
    # A damaged file counts as none.
    for file in (tmp_path / "stages").iterdir():
        file.write_bytes(file.read_bytes()[:40])
    assert get((1, "x")) == 4
    Stages(None, facts).get("text", 1, compute)
    assert len(list((tmp_path / "stages").iterdir())) == 3
