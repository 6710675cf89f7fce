"""Pairs of planted heads: a back-up shows as compensation, a chain as one job; groups beside their heads."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import lensprune as lp
from lensprune.analysis.head_effects import ItemEffects
from lensprune.analysis.head_groups import heads_beside_groups
from lensprune.errors import UserError
from lensprune.heads import estimated_compensation, pairwise_compensation
from lensprune.tasks import registry
from lensprune.tasks.base import MultipleChoiceFormat, Rows, Task
from tests.helpers.planted.circuits import LEAK, model_of
from tests.helpers.planted.models import SHAPES

NAME = "planted_repeat"
ROWS = [{"text": "a b c d a", "options": ["b", "c", "d"]}, {"text": "p o n m o", "options": ["n", "p", "m"]}]


@pytest.fixture(autouse=True)
def repeat_task() -> Iterator[None]:
    """What followed the last letter when it stood there before?"""

    @registry.register_task(name=NAME)
    def build() -> Task:
        form = MultipleChoiceFormat(
            context=lambda doc: str(doc["text"]),
            choices=lambda doc: list(doc["options"]),
            gold=lambda doc: 0,
            target_delimiter=" ",
            metrics=("acc",),
            primary_metric="acc",
        )
        return Task(
            name=NAME,
            summary="planted",
            formats={"continuation": form},
            chance=lambda doc, protocol: 1 / 3,
            load=lambda request: Rows(ROWS, [], "planted"),
            default_shots=0,
            licence="MIT",
            source="planted",
        )

    yield
    registry._builders.pop(NAME)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_back_up_makes_up_for_the_first_head_and_nothing_for_both(shape: str) -> None:
    found = pairwise_compensation(
        model_of("backup", shape), [(1, 2), (2, 0), (0, 1)], NAME, "continuation", progress=False
    ).table.set_index(["layer_a", "head_a", "layer_b", "head_b"])
    pair = found.loc[1, 2, 2, 0]
    values = pair[["effect_a", "effect_b", "effect_both", "interaction", "ci_low", "ci_high"]].tolist()
    assert values == pytest.approx([0, 0, -10, -10, -10, -10], abs=10 * LEAK)
    # Without the head that writes the previous token nothing can be found, with the others or without them.
    for other in ((1, 2), (2, 0)):
        chain = found.loc[(*other, 0, 1)]
        assert chain[["effect_b", "effect_both", "interaction"]].tolist() == pytest.approx([-10, -10, 0], abs=10 * LEAK)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["backup", "induction"])
def test_one_pass_without_each_head_tells_what_pairs_do(name: str, shape: str) -> None:
    heads = [(1, 2), (2, 0), (0, 1)] if name == "backup" else [(0, 1), (1, 2), (1, 0)]
    model = model_of(name, shape)
    exact = pairwise_compensation(model, heads, NAME, "continuation", progress=False).table
    found = estimated_compensation(model, heads, NAME, "continuation")
    keys = ["layer_a", "head_a", "layer_b", "head_b"]
    assert found[keys].equals(exact[keys])
    columns = ["effect_a", "effect_b", "interaction"]
    np.testing.assert_allclose(found[columns], exact[columns], atol=20 * LEAK)
    assert exact["interaction"].abs().max() > 9


@pytest.mark.parametrize("shape", SHAPES)
def test_heads_in_series_are_one_job(shape: str) -> None:
    found = pairwise_compensation(
        model_of("induction", shape), [(0, 1), (1, 2), (1, 0)], NAME, "continuation", progress=False
    )
    first, second, third = found.table.to_dict("records")
    for row, expected in ((first, [-10, -10, -10, 10]), (second, [-10, 0, -10, 0]), (third, [-10, 0, -10, 0])):
        values = [row[name] for name in ("effect_a", "effect_b", "effect_both", "interaction")]
        assert values == pytest.approx(expected, abs=10 * LEAK)
    assert set(found.table["measure"]) == {"logprob_margin"}


@pytest.mark.parametrize(
    ("heads", "changes", "message"),
    [
        ([(0, 1)], {}, "compensation needs two or more heads"),
        ([(0, 1), (0, 1)], {}, "L0.H1 is given twice"),
        ([(0, 1), (9, 1)], {}, "layers 0 to"),
        ([(0, 1), (1, 1)], {"measure": "margins"}, "did you mean logprob_margin"),
    ],
)
def test_refusals(heads: list[tuple[int, int]], changes: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        pairwise_compensation(model_of("induction", "llama"), heads, NAME, "continuation", progress=False, **changes)  # type: ignore[arg-type]


def test_groups_beside_the_planted_heads() -> None:
    model = model_of("induction", "llama")
    run = lp.sweep(model, NAME, "continuation", "heads-and-groups", progress=False)
    [table] = run.heads_and_groups(measure="logprob_margin")
    assert len(table) == model.facts.n_layers * model.facts.n_key_value_heads
    needed = table[table["group_effect"] < -1]
    assert list(needed[["layer", "group", "heads", "strongest_head"]].itertuples(index=False, name=None)) == [
        (0, 0, "0-1", 1),
        (1, 1, "2-3", 2),
    ]
    assert needed["group_effect"].tolist() == pytest.approx([-10, -10], abs=10 * LEAK)
    assert table["interaction"].abs().max() < 10 * LEAK
    only = lp.sweep(model, NAME, "continuation", "heads", progress=False)
    with pytest.raises(UserError, match="no kv_group was removed"):
        only.heads_and_groups()


def effects(
    heads: tuple[int, ...], differences: list[list[float]], items: str = "", measure: str = "logprob_margin"
) -> ItemEffects:
    """Effects on items named by one letter each."""
    names, values = tuple(f"v{h}" for h in heads), np.array(differences)
    ids = tuple(items or "abcdefgh"[: len(values)])
    return ItemEffects("t", "default", measure, names, (0,) * len(heads), heads, values, None, False, ids)


def test_interaction_by_hand() -> None:
    heads = effects((0, 1, 2), [[-1.0, -2.0, 0.0], [-3.0, 0.0, 0.0]])
    groups = effects((0, 1), [[-6.0, 0.0], [-4.0, 0.0]])
    [row] = heads_beside_groups(heads, groups, 2).to_dict("records")
    # The second group has a head that was not removed by itself.
    assert (row["group"], row["heads"], row["strongest_head"], row["strongest_effect"]) == (0, "0-1", 0, -2.0)
    assert (row["group_effect"], row["sum_of_heads"], row["interaction"]) == (-5.0, -3.0, -2.0)
    # Interactions −3 and −1: Student's t with one degree of freedom, standard error 1.
    assert (row["ci_low"], row["ci_high"]) == pytest.approx((-2 - 12.7062, -2 + 12.7062), abs=1e-4)


def test_items_are_paired_by_their_ids() -> None:
    """Heads lack item a and groups item c; on b and d heads add up exactly."""
    heads = effects((0, 1), [[-1.0, -2.0], [9.0, 9.0], [-3.0, 0.5]], "bcd")
    groups = effects((0,), [[7.0], [-3.0], [-2.5]], "abd")
    [row] = heads_beside_groups(heads, groups, 2).to_dict("records")
    assert (row["n"], row["group_effect"], row["sum_of_heads"], row["interaction"]) == (2, -2.75, -2.75, 0)
    assert (row["strongest_head"], row["strongest_effect"]) == (0, -2.0)
    with pytest.raises(UserError, match="share none of their 3 and 1 items"):
        heads_beside_groups(heads, effects((0,), [[1.0]], "x"), 2)


def test_an_interaction_that_is_the_same_everywhere_has_the_interval_of_its_scale() -> None:
    """Outcomes of three: the interaction of two heads is bounded by 3, so none in 3 items is ±3 (1 − 0.025^⅓)."""
    none = [[0.0, 0.0]] * 3
    [row] = heads_beside_groups(
        effects((0, 1), none, measure="correct"), effects((0,), [[0.0]] * 3, measure="correct"), 2
    ).to_dict("records")
    assert (row["ci_low"], row["ci_high"]) == pytest.approx((-3 * (1 - 0.025 ** (1 / 3)), 3 * (1 - 0.025 ** (1 / 3))))
    [row] = heads_beside_groups(effects((0, 1), none), effects((0,), [[0.0]] * 3), 2).to_dict("records")
    assert row["interaction"] == 0
    assert np.isnan([row["ci_low"], row["ci_high"]]).all()
