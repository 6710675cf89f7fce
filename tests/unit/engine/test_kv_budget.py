"""Keys and values while decoding: given as tokens come, counted as they are held, and never more than the budget."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from lensprune.ablation import CLEAN, Variant, each_head, each_layer
from lensprune.engine import ForkedExecutor, HookedExecutor
from lensprune.engine.base import VariantResponses
from lensprune.engine.decoding import ChunkSize, kv
from lensprune.engine.decoding.decoder import GroupDecoder
from lensprune.engine.forked import _Shares
from lensprune.engine.limits import DecodeLimits
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
    variants = [CLEAN, *each_layer(model, layers=[0, 2]), *each_head(model, layers=[0, 1], heads=[0])]
    requests = long_and_short(model)
    return model, variants, requests, list(HookedExecutor(model).run(requests, variants))


def held_by(decoder: GroupDecoder) -> int:
    attention = decoder._attention
    pairs = [history.pair for history in attention.histories.values()]
    for diverged in attention.diverged.values():
        pairs += [*diverged.prefixes, *(block.rest for block in diverged.blocks)]
    for clean in attention.clean.values():
        pairs += [clean.rest, *clean.prefixes]
    return sum(tensor.numel() * tensor.element_size() for pair in pairs for tensor in pair)


@pytest.mark.parametrize("family", FAMILIES)
def test_columns_are_added_as_tokens_come_and_taken_back(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where memory that isn't written to is taken all the same."""
    model, variants, requests, expected = by_hooks(family)
    executor = ForkedExecutor(model)
    held, counted = [], []
    advance = GroupDecoder._advance

    def watched(self: GroupDecoder, *args: Any) -> Any:
        counted.append(self.peak_kv_bytes)
        hidden = advance(self, *args)
        held.append(held_by(self))
        return hidden

    monkeypatch.setattr(GroupDecoder, "_advance", watched)
    monkeypatch.setattr(kv, "_allocated", lambda like, step, most: kv.columns_for(step, most))
    assert_responses_agree(model, requests, list(executor.run(requests, variants)), expected)
    # At first each variant has 6 rows with 32 columns, and in the end one with 40: held whole, all 6 would have 40.
    assert held[-1] < held[0]
    # Buffers of histories have a quarter of room to spare, or are as large as the histories that were.
    assert counted[-1] <= max(held) <= 1.25 * counted[-1]


@pytest.mark.parametrize("family", FAMILIES)
def test_variants_that_outgrow_the_budget_are_decoded_again(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, variants, requests, expected = by_hooks(family)
    peaks, postponed = [], []
    run = GroupDecoder.run

    def watched(self: GroupDecoder, *args: Any) -> Any:
        yield from run(self, *args)
        peaks.append(self.peak_kv_bytes)
        postponed.append(len(self.postponed))

    monkeypatch.setattr(GroupDecoder, "run", watched)
    list(ForkedExecutor(model).run(requests, variants))
    [whole], [none] = peaks, postponed
    assert none == 0
    peaks.clear()
    budget = whole // 2
    executor = ForkedExecutor(model, max_kv_bytes=budget)
    # As if groups before had held almost nothing.
    monkeypatch.setattr(_Shares, "widened", lambda self, limits: replace(limits, kv_bytes=100 * limits.kv_bytes))
    done: list[int] = []
    told: list[tuple[str, int]] = []

    def answered(name: str, answers: Any) -> None:
        told.extend((name, index) for index in answers)

    found = list(executor.run(requests, variants, progress=done.append, on_answers=answered))
    assert_responses_agree(model, requests, found, expected)
    assert max(postponed) > 0
    assert max(peaks) <= budget
    # Each answer is told once, whatever was decoded again.
    assert sum(done) == len(told) == len(set(told)) == len(requests) * len(variants)


def test_a_single_variant_goes_on_beyond_the_budget() -> None:
    model, variants, requests, expected = by_hooks("llama")
    found = list(ForkedExecutor(model, max_kv_bytes=1).run(requests[-2:], variants[:2]))
    cut = [replace(answered, responses=answered.responses[-2:]) for answered in expected[:2]]
    assert_responses_agree(model, requests[-2:], found, cut)


def test_groups_grow_when_texts_end_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer steps for the same answers: what no text needs is not reserved twice."""
    model = tiny("llama")
    variants = [CLEAN, *each_head(model, layers=[1, 2])]
    free = [r for r in requests_for(model, 30)[:4] if isinstance(r, GenerateRequest)]
    [clean] = HookedExecutor(model).run(free, [CLEAN])
    # All end with the first token that comes, long before the 120th, which they may have.
    stops = tuple({answer.text[:1] for answer in clean.responses if answer.text[:1].isascii()})  # type: ignore[union-attr]
    requests = [replace(r, until=stops, max_new_tokens=120) for r in free]
    sizes: list[int] = []
    run = GroupDecoder.run

    def watched(self: GroupDecoder, *args: Any) -> Any:
        sizes.append(len(self._variants))
        return run(self, *args)

    monkeypatch.setattr(GroupDecoder, "run", watched)
    executor = ForkedExecutor(model, max_kv_bytes=700_000)
    found = list(executor.run(requests, variants))
    grown = sizes.copy()
    monkeypatch.setattr(_Shares, "widened", lambda self, limits: limits)
    sizes.clear()
    assert_responses_agree(model, requests, found, list(executor.run(requests, variants)))
    assert grown[0] == sizes[0] <= len(variants) / 3
    assert max(grown) > sizes[0]
    assert len(grown) < len(sizes)


def test_the_share_is_the_largest_of_the_last_groups_and_one_after_a_wrong_guess() -> None:
    model = tiny("llama")
    requests = [r for r in requests_for(model) if isinstance(r, GenerateRequest)]
    most = ChunkSize(model.facts, requests).kv_bytes([CLEAN])
    limits, shares = DecodeLimits(8, 1000, 8), _Shares(model.facts)
    assert shares.widened(limits) == limits
    shares.add(most // 4, requests, [CLEAN], fitted=True)
    shares.add(most // 8, requests, [CLEAN], fitted=True)
    assert shares.widened(limits).kv_bytes == pytest.approx(1000 / (1.3 / 4), rel=0.01)
    shares.add(most // 4, requests, [CLEAN], fitted=False)
    assert shares.widened(limits) == limits
    for _ in range(3):
        shares.add(most // 8, requests, [CLEAN], fitted=True)
    assert shares.widened(limits).kv_bytes == pytest.approx(1000 / (1.3 / 8), rel=0.01)
