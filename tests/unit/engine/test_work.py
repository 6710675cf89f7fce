"""Progress counts tokens, those of prompts included, and comes while texts are written."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lensprune.ablation import CLEAN, each_layer
from lensprune.engine import ForkedExecutor, HookedExecutor
from lensprune.engine.generating import RowWork
from lensprune.protocols.requests import GenerateRequest, Request
from tests.helpers.generation import requests_for
from tests.helpers.tiny_models import likelihood_requests, tiny


def test_a_row_is_its_prompt_and_its_new_tokens() -> None:
    work = RowWork([30, 10], [10, 10])
    np.testing.assert_allclose(work.prompts, [0.75, 0.5])
    rows = np.array([0, 1])
    np.testing.assert_allclose(work.step(rows, np.zeros(2)), [1 / 40, 1 / 20])
    # The second text ends with its third token and does without seven others.
    np.testing.assert_allclose(work.step(rows, np.array([0, 3])), [1 / 40, 8 / 20])
    np.testing.assert_allclose(work.step(np.array([0]), np.array([10])), [1 / 40])


@pytest.mark.parametrize("executor", [HookedExecutor, ForkedExecutor])
def test_all_rows_are_worked_off_and_part_of_them_before_the_first_answer(executor: Any) -> None:
    model = tiny("llama")
    long = [replace(r, max_new_tokens=12) for r in requests_for(model)[:3] if isinstance(r, GenerateRequest)]
    requests: list[Request] = [*likelihood_requests(model)[:2], *long, replace(long[0], max_new_tokens=20)]
    variants = [CLEAN, *each_layer(model, layers=[0, 2])]
    done: dict[str, list[float]] = defaultdict(list)
    before_texts: dict[str, int] = {}

    def answered(name: str, answers: Any) -> None:
        if max(answers) >= 2:
            before_texts.setdefault(name, len(done[name]))

    list(
        executor(model).run(requests, variants, on_answers=answered, on_work=lambda name, rows: done[name].append(rows))
    )
    for variant in variants:
        of_variant = done[variant.name]
        assert sum(of_variant) == pytest.approx(len(requests))
        assert min(of_variant) > 0
        # Prompts at once, and then tokens, of which no report holds a whole text.
        early = of_variant[: before_texts[variant.name]]
        assert 2 < sum(early) < len(requests)
        assert max(of_variant[-2:]) < 1


def test_work_done_again_after_an_error_counts_once() -> None:
    model = tiny("llama")
    requests = requests_for(model)[:3]
    done: list[float] = []
    executor = ForkedExecutor(model)
    list(executor.run(requests, [CLEAN, *each_layer(model)], on_work=lambda name, rows: done.append(rows)))
    expected = sum(done)
    done.clear()
    fits = executor._fits

    def twice(work: Any, size: int) -> bool:
        assert fits(work, size)
        return fits(work, size)

    executor._fits = twice  # type: ignore[method-assign]
    list(executor.run(requests, [CLEAN, *each_layer(model)], on_work=lambda name, rows: done.append(rows)))
    assert sum(done) == pytest.approx(expected) == 3 * (1 + model.facts.n_layers)
