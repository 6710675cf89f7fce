"""Keys and values while decoding: given as tokens come, counted as they are held, and never more than the budget."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import pytest

from lensprune.ablation import CLEAN, Ablation, Attention, Layer, Variant, each_head, each_layer
from lensprune.engine import ForkedExecutor, HookedExecutor
from lensprune.engine.base import VariantResponses
from lensprune.engine.decoding import ChunkSize, decoder, kv
from lensprune.engine.decoding.decoder import GroupDecoder
from lensprune.models.base import HookedModel
from lensprune.protocols.requests import GenerateRequest, Request, Sampling
from tests.helpers.generation import requests_for
from tests.helpers.tiny_models import tiny
from tests.helpers.tolerances import assert_responses_agree

FAMILIES = ["llama", *(pytest.param(family, marks=pytest.mark.slow) for family in ("gemma3", "mixtral", "gpt2"))]


def long_and_short(model: HookedModel) -> list[Request]:
    """Most end early; two outgrow the columns that rows have at first, one of them sampled."""
    short = [replace(r, max_new_tokens=3) for r in requests_for(model) if isinstance(r, GenerateRequest)]
    sampled = Sampling(0.8, seed=1)
    return [*short[:4], replace(short[1], max_new_tokens=40), replace(short[3], max_new_tokens=34, sampling=sampled)]


@cache
def by_hooks(family: str) -> tuple[HookedModel, list[Variant], list[Request], list[VariantResponses]]:
    model = tiny(family)
    # Chosen by a row's own age, which differs between groups.
    late = Variant("late", (Ablation(Layer(1), "skip", at="generated[2:9]"),))
    variants = [CLEAN, *each_layer(model, layers=[0, 2]), *each_head(model, layers=[0, 1], heads=[0]), late]
    requests = long_and_short(model)
    return model, variants, requests, list(HookedExecutor(model).run(requests, variants))


def held_by(running: GroupDecoder) -> int:
    """Bytes of all tensors of keys and values."""
    pairs = [pair for clean in running._clean.values() for pair in (clean.rest, clean.shared)]
    for group in running._groups:
        pairs += [history.pair for history in group.attention.histories.values()]
        for diverged in group.attention.diverged.values():
            pairs += [diverged.shared, *(block.rest for block in diverged.blocks)]
    return sum(tensor.numel() * tensor.element_size() for pair in pairs for tensor in pair)


@dataclass
class Steps:
    """Of each step: rows, groups, and bytes of keys and values, as they are and as they are counted."""

    rows: list[int] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)
    held: list[int] = field(default_factory=list)
    peak: list[int] = field(default_factory=list)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    seen, advance = Steps(), GroupDecoder._advance

    def watched(self: GroupDecoder, rows: Any, tokens: Any) -> Any:
        hidden = advance(self, rows, tokens)
        if self._limits is None:
            # The check of the fast path at the start.
            return hidden
        seen.rows.append(len(rows))
        seen.groups.append(len(self._groups))
        seen.held.append(held_by(self))
        seen.peak.append(self.peak_kv_bytes)
        return hidden

    monkeypatch.setattr(GroupDecoder, "_advance", watched)
    return seen


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where memory that isn't written to is taken all the same."""
    monkeypatch.setattr(kv, "_allocated", lambda like, step, most: kv.columns_for(step, most))


@pytest.mark.parametrize("family", FAMILIES)
def test_columns_are_added_as_tokens_come_and_taken_back(family: str, steps: Steps, as_on_a_gpu: None) -> None:
    model, variants, requests, expected = by_hooks(family)
    assert_responses_agree(model, requests, list(ForkedExecutor(model).run(requests, variants)), expected)
    assert max(steps.groups) == 1
    # At first each variant has 6 rows with 32 columns, and in the end one with 40: held whole, all 6 would have 40.
    assert steps.held[-1] < steps.held[0]
    # Buffers of histories have a quarter of room to spare, or are as large as the histories that were.
    assert steps.peak[-1] <= max(steps.held) <= 1.25 * steps.peak[-1]


@pytest.mark.parametrize("family", FAMILIES)
def test_waiting_variants_join_as_rows_end(
    family: str, steps: Steps, as_on_a_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They write the same tokens, within the budget, and take fewer steps than group after group."""
    model, variants, requests, expected = by_hooks(family)
    texts = [r for r in requests if isinstance(r, GenerateRequest)]
    budget = int(0.6 * ChunkSize(model.facts, texts).kv_bytes(variants))
    executor = ForkedExecutor(model, max_kv_bytes=budget)
    done: list[int] = []
    told: list[tuple[str, int]] = []

    def answered(name: str, answers: Any) -> None:
        told.extend((name, index) for index in answers)

    found = list(executor.run(requests, variants, progress=done.append, on_answers=answered))
    assert_responses_agree(model, requests, found, expected)
    assert sum(done) == len(told) == len(set(told)) == len(requests) * len(variants)
    assert 1 < max(steps.groups) <= decoder.MAX_GROUPS
    assert max(steps.peak) <= budget
    assert max(steps.held) <= 1.25 * budget
    joined = len(steps.rows)
    monkeypatch.setattr(decoder, "MAX_GROUPS", 1)
    assert_responses_agree(model, requests, list(executor.run(requests, variants)), expected)
    assert len(steps.rows) - joined >= joined + 3


def test_a_variant_is_complete_before_the_last_ones_begin() -> None:
    """Its cell can be stored, where those given before it are complete."""
    model, (clean, *changed), requests, _ = by_hooks("llama")
    # The deepest first change is decoded last.
    variants, requests = [*changed[:2], clean], requests[:4]
    told: list[str] = []
    texts = [r for r in requests if isinstance(r, GenerateRequest)]
    budget = max(ChunkSize(model.facts, texts).kv_bytes([v]) for v in variants)
    answers = ForkedExecutor(model, max_kv_bytes=budget).run(
        requests, variants, on_answers=lambda name, new: told.extend([name] * len(new))
    )
    assert next(answers).variant == variants[0]
    assert told.count(variants[0].name) == len(requests)
    assert len(set(told)) < len(variants)
    assert [answered.variant for answered in answers] == variants[1:]


def test_variants_come_in_the_order_given_and_their_answers_as_they_end() -> None:
    """Those by hooks too, in their places."""
    model, (clean, shallow, deep, *_), requests, _ = by_hooks("llama")
    texts = [r for r in requests if isinstance(r, GenerateRequest)][:4]
    cut = Variant("cut", (Ablation(Attention(1), "cut", at="last", source="0"),))
    assert cut.needs_hooks
    variants, told = [clean, cut, deep, shallow], []
    budget = max(ChunkSize(model.facts, texts).kv_bytes([v]) for v in variants)
    executor = ForkedExecutor(model, max_kv_bytes=budget)
    answers = executor.run(texts, variants, on_answers=lambda name, new: told.extend([name] * len(new)))
    assert next(answers).variant == clean
    assert told[: len(texts)] == [shallow.name] * len(texts)
    assert [answered.variant for answered in answers] == variants[1:]


def test_a_single_variant_goes_on_beyond_the_budget() -> None:
    model, variants, requests, expected = by_hooks("llama")
    found = list(ForkedExecutor(model, max_kv_bytes=1).run(requests[-2:], variants[:2]))
    cut = [replace(answered, responses=answered.responses[-2:]) for answered in expected[:2]]
    assert_responses_agree(model, requests[-2:], found, cut)
