"""Heads of the hand-set reasoner are needed at the tokens at which they act by construction, and nowhere else."""

from __future__ import annotations

import pytest

from lensprune.errors import UserError
from lensprune.primitives import where_effects
from lensprune.primitives.chains import ChainOptions
from lensprune.primitives.figures import where_heatmaps
from tests.helpers.planted.reasoner import WORDING, reasoner

CHAINS = ChainOptions(3, 9, False, 12, 0, WORDING, 0)
PLACES = {
    (1, 0): {"operator", "step[0].operator", "step[0]"},
    (1, 1): set[str](),
    (1, 2): {"operator"},
    (1, 4): {"last"},
    (1, 6): {"words"},
    (2, 2): {"conclusion"},
}


def test_each_head_acts_where_it_was_planted() -> None:
    at = ("all", "last", "operand", "operator", "result", "carried", "conclusion", "answer", "words")
    table = where_effects(reasoner("llama"), CHAINS, list(PLACES), at=(*at, "step[0]", "step[0].operator", "step[7]"))
    assert set(table["at"]) == {*at, "step[0]", "step[0].operator"}
    overall = table[table["class"] == "all"].set_index(["layer", "head", "at"])
    needed = {head: set[str]() for head in PLACES}
    for (layer, head, place), row in overall.iterrows():
        if place != "all" and row["effect"] > 0.01:
            assert row["q_value"] <= 0.05
            needed[layer, head].add(place)
    assert needed == PLACES
    # One place holds the whole effect.
    for (layer, head), places in PLACES.items():
        for place in places:
            whole, part = (overall.loc[(layer, head, where), "effect"] for where in ("all", place))
            assert part == pytest.approx(whole, abs=1e-3)
    # The operator's head is needed for the operand after it.
    by_class = table[(table["head"] == 0) & (table["at"] == "operator")].set_index("class")["effect"]
    assert by_class["operand"] > 0.1
    assert abs(by_class["answer"]) < 1e-3
    assert [ax.get_title() for ax in where_heatmaps(table[table["at"].isin(("last", "operator"))])] == [
        "last",
        "operator",
    ]


def test_no_head_is_refused() -> None:
    with pytest.raises(UserError, match="there is no head to remove"):
        where_effects(reasoner("llama"), CHAINS, [])
