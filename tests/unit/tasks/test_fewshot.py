"""The stream of few-shot examples."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lensprune.errors import UserError
from lensprune.tasks.base import Doc, FewshotSampler
from lensprune.tasks.fewshot import LM_EVAL_SEED, FewshotDraw

POOL: list[Doc] = [{"n": number} for number in range(12)]


def _draw(
    shots: int, *, sampler: FewshotSampler = "random", exclude_self: bool = False, pool: list[Doc] = POOL, seed: int = 0
) -> FewshotDraw:
    return FewshotDraw(
        pool, shots, sampler=sampler, exclude_self=exclude_self, seed=LM_EVAL_SEED + seed, where="task 'x'"
    )


def test_one_generator_runs_over_all_items() -> None:
    random = Random(1234)
    expected = [tuple(random.sample(POOL, 3)) for _ in range(5)]
    draw = _draw(3)
    assert [draw.draw({"n": -1}) for _ in range(5)] == expected
    assert len({str(examples) for examples in expected}) == 5


def test_one_more_is_drawn_where_the_item_is_left_out() -> None:
    random = Random(1234)
    draw = _draw(3, exclude_self=True)
    for doc in POOL:
        expected = [example for example in random.sample(POOL, 4) if example != doc][:3]
        assert draw.draw(doc) == tuple(expected)


@given(shots=st.integers(0, 11), seed=st.integers(0, 50), sampler=st.sampled_from(["random", "first_n"]))
def test_examples_are_distinct_and_never_the_item(shots: int, seed: int, sampler: FewshotSampler) -> None:
    draw, again = (_draw(shots, sampler=sampler, exclude_self=True, seed=seed) for _ in range(2))
    for doc in POOL:
        examples = draw.draw(doc)
        assert examples == again.draw(doc)
        assert len(examples) == shots
        assert doc not in examples
        assert len({example["n"] for example in examples}) == shots


def test_first_n() -> None:
    assert _draw(2, sampler="first_n").draw(POOL[0]) == (POOL[0], POOL[1])
    assert _draw(2, sampler="first_n", exclude_self=True).draw(POOL[0]) == (POOL[1], POOL[2])


def test_copies_of_the_item_in_the_pool() -> None:
    pool: list[Doc] = [{"n": 0}] * 6 + [{"n": 1}, {"n": 2}]
    draw = _draw(2, pool=pool, exclude_self=True)
    for _ in range(20):
        assert sorted(example["n"] for example in draw.draw({"n": 0})) == [1, 2]
    crowded = _draw(3, pool=pool, exclude_self=True)
    with pytest.raises(UserError, match="3 shots, but only 2 examples differ from the item"):
        crowded.draw({"n": 0})


def test_no_shots_need_no_pool() -> None:
    assert _draw(0, pool=[]).draw({"n": 1}) == ()
    assert _draw(0, pool=[], exclude_self=True).draw({"n": 1}) == ()


def test_pool_that_is_too_small() -> None:
    with pytest.raises(UserError, match=r"task 'x': 13 shots need 13 .*there are 12"):
        _draw(13)
    with pytest.raises(UserError, match=r"12 shots need 13 .*there are 12"):
        _draw(12, exclude_self=True)
