"""Every head of the hand-set reasoner is named for what it does, and no other part is named at all."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from lensprune.errors import UserError
from lensprune.models.base import HookedModel
from lensprune.primitives import Primitives, Wording, primitives, selectivity
from lensprune.primitives.verdicts import ROLES
from tests.helpers.planted.circuits import LEAK, ids
from tests.helpers.planted.models import SHAPES
from tests.helpers.planted.reasoner import TEXTS, WORDING, reasoner

ROLES_BY_CONSTRUCTION = {
    (0, 0): "routes position",
    (0, 2): "formats answer",
    (0, 4): "keeps coherence",
    (1, 0): "carries operand",
    (1, 2): "carries operand",
    (1, 4): "carries operand",
    (1, 6): "moves result",
    (2, 0): "formats answer",
    (2, 2): "moves result",
    (2, 4): "computes result",
    (2, 6): "computes result",
}


@cache
def battery(shape: str) -> Primitives:
    return primitives(reasoner(shape), limit=20, shots=0, subtract=False, wording=WORDING, texts=TEXTS, seed=0)


def predicted(model: HookedModel, text: str) -> list[str]:
    tokens = torch.tensor([ids(model, text)])
    with torch.inference_mode():
        logits = model.forward(tokens, torch.ones_like(tokens), torch.arange(tokens.shape[1])[None])[0]
    return [str(model.tokenizer.decode([int(row.argmax())])) for row in logits]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_reasoner_works_in_steps(shape: str) -> None:
    said = predicted(reasoner(shape), "3 + 4 + 2 ? 3 + 4 = 7 . 7 + 2 = 9 . ? 9 .")
    right = {6: "3", 8: "4", 10: "7", 12: "7", 14: "2", 16: "9", 18: "?", 19: "9"}
    assert {place: said[place] for place in right} == right


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_each_planted_head_is_named_and_nothing_else(shape: str) -> None:
    verdicts = battery(shape).verdicts
    named = verdicts[verdicts["verdict"] != "nothing resolvable"]
    assert named["component"].eq("head").all()
    found = {(int(row.layer), int(row.head)): row.verdict for row in named.itertuples()}
    assert found == ROLES_BY_CONSTRUCTION


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_controls_name_nothing(shape: str) -> None:
    controls = battery(shape).controls
    assert controls["named"].sum() == len(ROLES_BY_CONSTRUCTION) - 1
    assert controls["named_by_placebo"].sum() == 0
    assert controls["named_with_shuffled_classes"].sum() == 0


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_planted_roles_survive_every_control(shape: str) -> None:
    survival = battery(shape).survival
    assert set(zip(survival["layer"], survival["head"], strict=True)) == ROLES_BY_CONSTRUCTION.keys() - {(0, 4)}
    assert survival["fell"].eq("").all()
    tested = survival.groupby("role")["untested"].agg(", ".join)
    # Other wordings have tokens that the model lacks.
    assert survival["untested"].str.contains("other wording").all()
    for role in ("computes result", "moves result"):
        assert tested[role].replace("other wording", "").strip(", ") == ""


def test_shares_are_those_of_the_construction() -> None:
    """Each operand has its own head, so each moves a third of the operand probes; routers carry no operand."""
    table = battery("llama").causal
    table = table.set_index(["component", "layer", "head", "test"])["share"]
    for layer, head in ((1, 0), (1, 2), (1, 4)):
        assert table["head", layer, head, "operand"] == pytest.approx(1 / 3, abs=LEAK)
    assert table["head", 0, 0, "operand"] == pytest.approx(0, abs=1e-6)
    assert table["head", 0, 0, "position"] == pytest.approx(1, abs=LEAK)
    adders = table["head", 2, 4, "result"] + table["head", 2, 6, "result"]
    assert adders == pytest.approx(1, abs=10 * LEAK)


def test_what_is_not_predicted_is_not_resolvable() -> None:
    notes = " ".join(battery("llama").notes)
    assert "class operator: predicted in 0 solutions" in notes
    assert "test operator: 0 of 40 probes answered correctly" in notes


def test_removing_a_role_breaks_its_own_class_and_no_other() -> None:
    table = selectivity(reasoner("llama"), battery("llama"), draws=20)
    for role in ("carries operand", "computes result", "moves result", "formats answer"):
        own = table[(table["role"] == role) & table["own"]]
        other = table[(table["role"] == role) & ~table["own"]]
        assert (own["p_value"] <= 1 / 21 + 1e-9).all()
        # The format router also keeps the next step's result from being lost: by construction it touches "carried".
        left = other[other["class"] != "carried"] if role == "formats answer" else other
        assert left["effect"].abs().max() < 1e-2
        assert own["effect"].min() > 2
    # One head keeps coherence: sets that spare it exist, are others than the first kind's, and break as little.
    assert table["spared_p"].notna().all()
    assert not table["spared_mean"].equals(table["random_mean"])
    assert (table.loc[table["own"], "spared_p"] <= 0.15).all()


@pytest.mark.slow
def test_means_and_donors_leave_what_every_chain_has() -> None:
    """Heads that compute hold nothing but this chain's numbers: without those the result is lost each time."""
    found = battery("llama")
    for ablation in ("mean", "resample"):
        table = selectivity(reasoner("llama"), found, draws=10, ablation=ablation)
        computing = table[table["role"] == "computes result"].set_index("class")["effect"]
        assert computing["result"] > 1
        assert computing.drop("result").abs().max() < 0.1
    with pytest.raises(UserError, match="ablation for selectivity"):
        selectivity(reasoner("llama"), found, ablation="optimal")


@pytest.mark.slow
def test_what_a_model_cannot_do_has_no_role() -> None:
    """Without the words that its heads wait for, the reasoner predicts two operands, results and what is carried."""
    found = primitives(
        reasoner("llama"),
        limit=12,
        shots=0,
        subtract=False,
        wording=Wording(ask=" =", end=" .", conclusion=" .", between=""),
        texts=TEXTS,
    )
    verdicts = found.verdicts[~found.verdicts["verdict"].isin(("nothing resolvable", "keeps coherence"))]
    named = {(int(row.layer), int(row.head)): row.verdict for row in verdicts.itertuples()}
    assert named.keys() == {(0, 0), (1, 0), (1, 2), (1, 6), (2, 6)}
    assert named.items() <= ROLES_BY_CONSTRUCTION.items()
    assert found.controls[["named_with_shuffled_classes", "named_by_placebo"]].sum().eq(0).all()
    assert set(found.controls["role"]) == set(ROLES)
