"""The time left follows the work left: by a fake clock, on costs as a sweep has them."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from itertools import pairwise

import pytest

from lensprune.ablation import CLEAN, each_layer
from lensprune.costs.cost import Cost
from lensprune.costs.shape import loaded_shape
from lensprune.costs.shared import shared_cost, shared_costs
from lensprune.protocols.requests import GenerateRequest, Request
from lensprune.terminal import TimeLeft, work_bar
from tests.helpers.tiny_models import likelihood_requests, tiny

LAYERS = 30


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def stated(pieces: list[float], seconds: list[float], weigh: Callable[[float], float]) -> list[tuple[float, float]]:
    """The time left that is stated after each piece but the last, and the true one."""
    clock = Clock()
    left = TimeLeft({"": sum(map(weigh, pieces))}, clock)
    shown = []
    for i, (piece, took) in enumerate(zip(pieces, seconds, strict=True)):
        clock.now += took
        left.add(weigh(piece), "")
        if left.seconds is not None and i + 1 < len(pieces):
            shown.append((left.seconds, sum(seconds[i + 1 :])))
    return shown


def sweep_costs() -> list[float]:
    """Three chunks of scoring, in which a variant costs the layers from its first changed one on, then generation."""
    scoring = [1.0 + LAYERS - layer for _ in range(3) for layer in range(LAYERS)]
    return [*scoring, *[60.0] * LAYERS]


def test_the_stated_time_never_doubles_where_the_weights_are_the_costs() -> None:
    costs, draw = sweep_costs(), random.Random(0)
    seconds = [0.05 * cost * draw.uniform(0.7, 1.3) for cost in costs]
    shown = stated(costs, seconds, lambda cost: cost)
    assert all(after < 1.25 * before for (before, _), (after, _) in pairwise(shown))
    assert all(0.5 < said / true < 2 for said, true in shown)
    # Not even over all of it: what is said at any time is at most twice what was said before.
    lowest = float("inf")
    for said, _ in shown:
        lowest = min(lowest, said)
        assert said < 2 * lowest
    # By the number of pieces alone it does, so the test can tell.
    by_number = stated(costs, seconds, lambda cost: 1.0)
    assert max(max(said / true, true / said) for said, true in by_number) > 2


RECORDED = (
    "score", (7.6, 12), (3.8, 7), "generate", (3.8, 13), (34.2, 21), (34.2, 10), "score", (11.4, 13), (11.4, 15),
    (11.4, 15), (11.4, 12), (11.4, 14), (7.6, 12), (11.4, 12), (3.8, 5), "generate", (22.8, 15), (64.5, 12), (22.8, 14),
    (64.5, 12), "score", (7.6, 12), (7.6, 10), "generate", (11.4, 12), (15.2, 13),
)  # fmt: skip
"""Planned and measured seconds of pieces of `lensprune demo` (SmolLM2-135M, three tasks under two protocols) on two
cores: the first texts are slower than planned, and later ones end far earlier."""


@pytest.mark.parametrize("planned", [True, False])
def test_the_stated_time_of_a_recorded_sweep_does_not_double(planned: bool) -> None:
    pieces, kind = [], ""
    for one in RECORDED:
        if isinstance(one, str):
            kind = one
        else:
            pieces.append((kind, *one))
    clock, whole = Clock(), {kind: sum(work for k, work, _ in pieces if k == kind) for kind in ("score", "generate")}
    left, lowest, rise, end = TimeLeft(whole, clock, planned=planned), float("inf"), 0.0, sum(p[2] for p in pieces)
    for kind, work, seconds in pieces[:-1]:
        clock.now += seconds
        left.add(work, kind)
        assert left.seconds is not None
        rise, lowest = max(rise, left.seconds / lowest), min(lowest, left.seconds)
        assert not planned or 0.5 < left.seconds / (end - clock.now) < 2
    # By the pace so far alone it rises by 84%.
    assert rise < 1.2 if planned else rise > 1.8


def test_work_that_was_known_or_need_not_be_done_changes_no_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    clock = Clock()
    with work_bar({"a": 90.0, "b": 10.0}, shown=True, clock=clock) as bar:
        bar.spare(40.0, "a")
        clock.now = 10.0
        bar.done(10.0, "a")
        assert bar._left.seconds == pytest.approx(50.0)
        bar.set_left({"a": 20.0})
        assert bar._left.seconds == pytest.approx(20.0)
        assert bar.finished == 10.0


def test_nothing_is_said_before_anything_is_done() -> None:
    assert TimeLeft({"": 5.0}, Clock()).seconds is None


def test_each_kind_of_work_has_its_own_pace_once_it_was_done() -> None:
    clock = Clock()
    left = TimeLeft({"score": 20.0, "generate": 100.0}, clock)
    clock.now = 10.0
    left.add(10.0, "score")
    assert left.seconds == pytest.approx(110.0)
    # Texts end long before the most tokens that they were planned with.
    clock.now = 12.0
    left.add(20.0, "generate")
    assert left.seconds == pytest.approx(10.0 + 80 * 0.1)


def test_what_comes_before_the_first_piece_is_not_its_pace() -> None:
    clock = Clock()
    left = {kind: TimeLeft({"": 300.0}, clock, planned=kind) for kind in (False, True)}
    # Prompts are read for 45 seconds, and then the first short text of many ends.
    clock.now = 45.0
    for one in left.values():
        one.add(0.1, "")
    assert left[False].seconds == pytest.approx(299.9 * 450)
    assert left[True].seconds == pytest.approx(299.9 * 105 / 60.1)
    # Later, what was measured counts for most.
    clock.now = 400.0
    for one in left.values():
        one.add(199.9, "")
    assert left[False].seconds == pytest.approx(200)
    assert left[True].seconds == pytest.approx(100 * 460 / 260)


@pytest.mark.parametrize("generates", [False, True])
def test_each_variants_cost_is_by_its_depth_and_all_add_up(generates: bool) -> None:
    model = tiny("llama")
    shape, facts = loaded_shape(model), model.facts
    requests: list[Request] = likelihood_requests(model)
    if generates:
        requests = [GenerateRequest(tuple(range(3, 12)), (), 5), GenerateRequest(tuple(range(3, 9)), (), 5)]
    variants = [CLEAN, *each_layer(facts, "skip")]
    costs = shared_costs(shape, facts, requests, variants, None)
    by_layer = [costs[v.name].flops for v in variants[1:]]
    assert by_layer == sorted(by_layer, reverse=True)
    assert by_layer[0] > by_layer[-1] > 0
    whole = shared_cost(shape, facts, requests, variants, None)
    assert sum(costs.values(), Cost()).flops == pytest.approx(whole.flops)
    assert costs["clean"].passes == pytest.approx(4 / len(variants) if generates else 0)
