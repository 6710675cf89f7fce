"""Answers that are known from before: returned as they are, run for no variant, reported to nobody."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from lensprune.ablation import CLEAN, Ablation, Attention, Layer, Variant, collect_reference, each_head, each_layer
from lensprune.engine import ForkedExecutor, HookedExecutor
from lensprune.engine.decoding import ChunkSize, decoder
from lensprune.engine.decoding.decoder import GroupDecoder
from lensprune.errors import UserError
from lensprune.models.base import HookedModel
from lensprune.protocols.requests import (
    GenerateRequest,
    GenerateResponse,
    LoglikelihoodRequest,
    LoglikelihoodResponse,
    Request,
    Response,
)
from tests.helpers.families import FAMILIES
from tests.helpers.generation import REFERENCE_PROMPTS, requests_for
from tests.helpers.tiny_models import likelihood_requests, tiny
from tests.helpers.tolerances import assert_responses_agree

Known = dict[str, dict[int, Response]]
GIVEN = {
    LoglikelihoodRequest: LoglikelihoodResponse(-1234.5, True, 99),
    GenerateRequest: GenerateResponse("no model wrote this", (1, 2, 3), "eos"),
}
"""What no model answers."""


def known_of(requests: Sequence[Request], variants: Sequence[Variant]) -> Known:
    """Something else for each variant: nothing, every second answer, one chunk's, all texts, all but one, all."""
    n = len(requests)
    texts = {i for i, request in enumerate(requests) if isinstance(request, GenerateRequest)}
    kinds = (set(), set(range(0, n, 2)), set(range(n // 2)), texts, set(range(n)) - {n - 2}, set(range(n)))
    chosen = {v.name: kinds[i % len(kinds)] for i, v in enumerate(variants)}
    return {name: {i: GIVEN[type(requests[i])] for i in sorted(known)} for name, known in chosen.items() if known}


def variants_of(model: HookedModel) -> list[Variant]:
    cut = Variant("cut", (Ablation(Attention(1), "cut", at="last", source="0"),))
    late = Variant("late", (Ablation(Layer(1), "skip", at="generated[2:9]"),))
    heads = each_head(model, "mean", layers=[0, 1, 2], heads=[0, 1])
    return [CLEAN, cut, *each_layer(model), late, *heads, replace(cut, name="cut again")]


@pytest.mark.parametrize("executor", [HookedExecutor, ForkedExecutor])
@pytest.mark.parametrize(
    "family", [family if family == "llama" else pytest.param(family, marks=pytest.mark.slow) for family in FAMILIES]
)
def test_only_what_is_missing_is_run_and_reported(executor: Any, family: str) -> None:
    model = tiny(family)
    requests, variants = [*likelihood_requests(model), *requests_for(model)], variants_of(model)
    reference = collect_reference(model, REFERENCE_PROMPTS, variants)
    known = known_of(requests, variants)
    expected = list(executor(model).run(requests, variants, reference=reference))
    told: Counter[tuple[str, int]] = Counter()
    counted: list[int] = []
    worked: Counter[str] = Counter()

    def answered(name: str, answers: Any) -> None:
        told.update((name, index) for index in answers)

    def on_work(name: str, rows: float) -> None:
        assert rows > 0
        worked[name] += rows  # type: ignore[assignment]

    found = list(
        executor(model).run(
            requests,
            variants,
            reference=reference,
            known=known,
            progress=counted.append,
            on_answers=answered,
            on_work=on_work,
        )
    )
    assert [a.variant for a in found] == variants
    lacking = {v.name: [i for i in range(len(requests)) if i not in known.get(v.name, {})] for v in variants}
    assert told == Counter((name, i) for name, missing in lacking.items() for i in missing)
    assert sum(counted) == len(told) < len(requests) * len(variants)
    assert worked == pytest.approx({name: len(missing) for name, missing in lacking.items() if missing})
    filled = []
    for mine, whole in zip(found, expected, strict=True):
        kept = known.get(mine.variant.name, {})
        assert all(mine.responses[i] is kept[i] for i in kept)
        responses = [whole.responses[i] if i in kept else response for i, response in enumerate(mine.responses)]
        filled.append(replace(mine, responses=tuple(responses)))
    assert_responses_agree(model, requests, filled, expected, reference)
    if executor is ForkedExecutor:
        # Bit for bit, because the same prefix trees run.
        forked = [v for v in variants if not v.needs_hooks]
        for mine, whole in zip(filled, expected, strict=True):
            if mine.variant in forked:
                assert scores(mine.responses) == scores(whole.responses)


@pytest.mark.parametrize("executor", [HookedExecutor, ForkedExecutor])
def test_complete_variants_need_no_reference(executor: Any) -> None:
    """Whether they run by hooks or not."""
    model = tiny("llama")
    requests = [*likelihood_requests(model)[:2], *requests_for(model)[:2]]
    cut = Variant("cut too", (Ablation(Attention(1), "cut", at="last", source="0"), Ablation(Layer(2), "mean")))
    variants = [*each_layer(model, "mean"), CLEAN, cut]
    known: Known = {v.name: {i: GIVEN[type(r)] for i, r in enumerate(requests)} for v in variants if v != CLEAN}
    expected = next(executor(model).run(requests, [CLEAN]))
    found = list(executor(model).run(requests, variants, known=known))
    assert [a.variant for a in found] == variants
    for answered in found:
        own = known.get(answered.variant.name)
        assert answered.responses == (expected.responses if own is None else tuple(own.values()))
    del known[variants[1].name][0]
    with pytest.raises(UserError, match=r"L1\S*mean needs reference activations"):
        list(executor(model).run(requests, variants, known=known))


def scores(responses: Sequence[Response]) -> list[LoglikelihoodResponse]:
    return [response for response in responses if isinstance(response, LoglikelihoodResponse)]


def test_texts_that_hooks_run_for_their_length_are_known_too(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny("long_rope")
    asked = [GenerateRequest((5 + n, 9, 7, 8), ("\x00",), n) for n in (70, 6, 7, 8, 71)]
    requests: list[Request] = [*asked]
    variants = [CLEAN, *each_layer(model)]
    executor = ForkedExecutor(model)
    with caplog.at_level(logging.INFO):
        expected = list(executor.run(requests, variants))
    assert "2 of 5 requests are longer" in caplog.text
    known = known_of(requests, variants)
    told: list[tuple[str, int]] = []
    found = list(
        executor.run(requests, variants, known=known, on_answers=lambda name, new: told.extend((name, i) for i in new))
    )
    for mine, whole in zip(found, expected, strict=True):
        kept = known.get(mine.variant.name, {})
        assert mine.responses == tuple(kept.get(i, response) for i, response in enumerate(whole.responses))
        assert sorted(i for name, i in told if name == mine.variant.name) == sorted(set(range(5)) - set(kept))


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Rows that run, and bytes of keys and values at the peak so far, of each step of a decoder with limits."""
    seen: list[tuple[int, int]] = []
    advance = GroupDecoder._advance

    def watched(self: GroupDecoder, rows: Any, tokens: Any) -> Any:
        hidden = advance(self, rows, tokens)
        if self._limits is not None:
            seen.append((len(rows), self.peak_kv_bytes))
        return hidden

    monkeypatch.setattr(decoder.GroupDecoder, "_advance", watched)
    return seen


def test_variants_that_lack_different_texts_run_in_the_same_steps(steps: list[tuple[int, int]]) -> None:
    """Within the budgets, which count the rows that run and no others."""
    model = tiny("llama")
    requests, variants = requests_for(model)[:8], [CLEAN, *each_layer(model), *each_head(model, layers=[0, 1])]
    texts = [r for r in requests if isinstance(r, GenerateRequest)]
    n = len(variants)
    budget = int(ChunkSize(model.facts, texts).kv_bytes(variants) / 2)
    executor = ForkedExecutor(model, max_kv_bytes=budget)
    expected = list(executor.run(requests, variants))
    undisturbed = len(steps)
    assert max(rows for rows, _ in steps) < 0.7 * n * len(texts)
    steps.clear()
    # Each lacks two texts, and hardly any two the same.
    lacking = [{i % 8, (3 * i + 1 + i // 8) % 8} for i in range(n)]
    known: Known = {
        answered.variant.name: {i: r for i, r in enumerate(answered.responses) if i not in missing}
        for answered, missing in zip(expected, lacking, strict=True)
    }
    assert len(set(map(frozenset, lacking))) > n / 2
    assert list(executor.run(requests, variants, known=known)) == expected
    assert steps[0][0] == sum(map(len, lacking))
    assert len(steps) <= max(r.max_new_tokens for r in texts) < undisturbed
    assert max(peak for _, peak in steps) <= budget
