"""Sampling, forced ends and generation configs in both executors: the same tokens, whatever runs beside a row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from lensprune.ablation import CLEAN, Variant, collect_reference, each_head, each_layer
from lensprune.engine import ForkedExecutor, HookedExecutor
from lensprune.errors import UserError
from lensprune.models.base import HookedModel
from lensprune.protocols.requests import ForcedEnd, GenerateRequest, Sampling
from lensprune.protocols.stopping import generated_text
from lensprune.sweeps.options import TokenSampling
from lensprune.tasks.generation_settings import MIN_TEMPERATURE, generation_settings
from tests.helpers.families import FAMILIES, GATED_CONFIGS, POST_NORM_CONFIGS
from tests.helpers.generation import REFERENCE_PROMPTS, requests_for, variants_for
from tests.helpers.tiny_models import tiny

ALL = (*FAMILIES, *GATED_CONFIGS)
EVERY = (*ALL, "cohere", "cohere2", *POST_NORM_CONFIGS, "long_rope")
"""All that the forked executor runs itself."""
FORCED = (60, 2, 61)
"""EOS among them."""
WARM = Sampling(0.8, top_p=0.95, top_k=60, seed=3)


def free(model: HookedModel, new_tokens: int = 14) -> list[GenerateRequest]:
    asked = [r for r in requests_for(model, new_tokens) if isinstance(r, GenerateRequest)]
    return [replace(r, item=str(i), max_new_tokens=new_tokens) for i, r in enumerate(asked)]


def sampled(requests: Sequence[GenerateRequest], sampling: Sampling = WARM) -> list[GenerateRequest]:
    """Two samples of each; of every third request one more, which is greedy."""
    asked = [replace(r, sampling=replace(sampling, sample=sample)) for r in requests for sample in (0, 1)]
    return [*asked, *requests[::3]]


def answers(executor: Any, requests: Sequence[Any], variants: Sequence[Variant], **given: Any) -> list[Any]:
    return [answer.responses for answer in executor.run(requests, variants, **given)]


def same(model: HookedModel, requests: Sequence[GenerateRequest], variants: Sequence[Variant], **given: Any) -> Any:
    """The answers of the hooked executor, once they are found to be the forked one's."""
    expected = answers(HookedExecutor(model), requests, variants, **given)
    assert answers(ForkedExecutor(model), requests, variants, **given) == expected
    return expected


@pytest.mark.slow
@pytest.mark.parametrize("family", ALL)
def test_both_executors_sample_the_same_tokens(family: str) -> None:
    model = tiny(family)
    variants = variants_for(model)[:: 2 if family in ("llama", "gpt2") else 8]
    reference = collect_reference(model, REFERENCE_PROMPTS, variants)
    found = same(model, sampled(free(model, 8)[::2]), variants, reference=reference)
    texts = {response.token_ids for response in found[0]}
    assert len(texts) > 10


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_row_is_the_same_alone_in_any_order_and_in_any_batch(family: str) -> None:
    model = tiny(family)
    requests, variants = sampled(free(model, 8)), [CLEAN, *each_layer(model)]
    whole = same(model, requests, variants)
    for executor in (HookedExecutor(model, 1), ForkedExecutor(model, 1, 1, 1), ForkedExecutor(model, 60, 7)):
        assert answers(executor, requests, variants) == whole
    back = answers(ForkedExecutor(model), requests[::-1], variants[::-1])
    assert [row[::-1] for row in back[::-1]] == whole


def test_the_least_temperature_is_greedy_and_less_is_refused() -> None:
    model = tiny("llama")
    greedy = same(model, free(model), [CLEAN])
    cold = [replace(r, sampling=Sampling(MIN_TEMPERATURE, seed=1)) for r in free(model)]
    assert same(model, cold, [CLEAN]) == greedy
    assert same(model, [replace(r, sampling=Sampling(2.0, seed=1)) for r in free(model)], [CLEAN]) != greedy
    for wrong in (1e-9, -0.5, math.nan, math.inf, 101):
        with pytest.raises(UserError, match=rf"temperature {wrong:g} is not possible: expected 0, which decodes"):
            TokenSampling(temperature=wrong)
        with pytest.raises(UserError, match="'temperature' is"):
            generation_settings({"do_sample": True, "temperature": wrong}, (), "task")


def test_equal_prompts_of_other_items_and_samples_stay_apart() -> None:
    model = tiny("llama")
    prompt = free(model)[0]
    asked = [replace(prompt, item=item, sampling=Sampling(1.0, sample=s)) for item in ("a", "b") for s in range(3)]
    [found] = same(model, asked, [CLEAN])
    assert len({response.token_ids for response in found}) == 6
    assert same(model, [*asked[3:], *asked[3:]], [CLEAN]) == [(*found[3:], *found[3:])]


def test_a_variant_that_changes_nothing_samples_the_clean_model_s_tokens() -> None:
    model = tiny("llama")
    clean, same_model, other = same(model, sampled(free(model)), [CLEAN, Variant("same"), each_layer(model)[1]])
    assert same_model == clean
    assert other != clean
    other_seed = [replace(r, sampling=replace(WARM, seed=4)) for r in free(model)]
    assert same(model, other_seed, [CLEAN])[0] != clean[: 2 * len(other_seed) : 2]


def budget(model: HookedModel, after: int = 6) -> ForcedEnd:
    """Two tokens with which one of the texts fills the budget, and that it has not before."""
    [written] = answers(HookedExecutor(model), free(model), [CLEAN])
    markers = [(text.token_ids[after - 2 : after], text.token_ids[: after - 1]) for text in written]
    return ForcedEnd(after, next(m for m, before in markers if m not in pairwise(before)), FORCED)


@pytest.mark.slow
@pytest.mark.parametrize("sampling", [None, WARM], ids=["greedy", "sampled"])
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_forced_end_is_a_second_prompt(family: str, sampling: Sampling | None) -> None:
    """Two-step budget forcing: what follows is what the model writes after prompt, first tokens and forced tokens."""
    model = tiny(family)
    end, variants = budget(model), [CLEAN, *each_layer(model), *each_head(model, layers=[1])]
    plain = [replace(r, sampling=sampling) for r in free(model)]
    found = same(model, [replace(r, forced_end=end) for r in plain], variants)
    unforced = answers(HookedExecutor(model), plain, variants)
    counts = {True: 0, False: 0}
    for of_variant, without in zip(found, unforced, strict=True):
        for response, before in zip(of_variant, without, strict=True):
            ids = response.token_ids
            assert ids[:6] == before.token_ids[:6]
            place = end.forced_at(ids)
            counts[place is not None] += 1
            if place is None:
                assert response == before
                continue
            assert ids[6:9] == FORCED
            assert len(ids) == 14 or response.stop_reason != "length"
    assert counts[True] > 10
    assert counts[False] or sampling is not None
    if sampling is None:
        forced = [(r, a) for r, a in zip(plain, found[0], strict=True) if end.forced_at(a.token_ids) is not None]
        second = [replace(r, context_ids=r.context_ids + a.token_ids[:9], max_new_tokens=5) for r, a in forced]
        [rest] = answers(HookedExecutor(model), second, [CLEAN])
        assert [a.token_ids[9:] for _, a in forced] == [a.token_ids for a in rest]


def test_a_marker_within_the_budget_is_left_alone() -> None:
    model = tiny("llama")
    end = budget(model)
    [written] = answers(HookedExecutor(model), free(model), [CLEAN])
    request, plain = next(
        (r, text)
        for r, text in zip(free(model), written, strict=True)
        if text.token_ids[4:6] == end.marker_ids and end.marker_ids not in pairwise(text.token_ids[:5])
    )
    for after, forced in ((6, False), (7, False), (5, True)):
        ends = replace(request, forced_end=replace(end, after=after))
        [[found]] = same(model, [ends], [CLEAN])
        assert (found == plain) is not forced
        assert found.token_ids[after : after + 3] == FORCED or not forced


def test_forced_text_stops_nothing_and_is_not_cut() -> None:
    model = tiny("llama")
    decode = model.tokenizer.decode
    words = decode([60, 61])
    end = ForcedEnd(3, (5, 5, 5), FORCED)
    asked = [replace(r, forced_end=end, sampling=Sampling(1.0)) for r in free(model)]
    [written] = same(model, asked, [CLEAN])
    place, request, plain = next(
        (7, r, text)
        for r, text in zip(asked, written, strict=True)
        if text.token_ids[7] not in (*text.token_ids[:3], text.token_ids[6])
    )
    stopped = replace(request, forced_end=end, until=(words, decode([60])))
    assert same(model, [stopped], [CLEAN]) == [(plain,)]
    assert words in plain.text
    assert generated_text(model.tokenizer, stopped, plain.token_ids) == plain.text
    # The same string stops what the model writes after it.
    later = decode([plain.token_ids[place]])
    [[found]] = same(model, [replace(stopped, until=(words, later))], [CLEAN])
    assert found.stop_reason == "stop_string"
    assert found.token_ids == plain.token_ids[: len(found.token_ids)]
    assert len(found.token_ids) == place + 1
    assert found.text == decode(plain.token_ids[:place], skip_special_tokens=True)


def test_an_end_of_text_before_the_budget_ends_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")
    requests = free(model)
    [written] = answers(HookedExecutor(model), requests, [CLEAN])
    firsts = [text.token_ids[:4] for text in written]
    ending = next(ids[1] for ids in firsts if any(ids[1] not in other for other in firsts))
    monkeypatch.setattr(model.module.original_model.generation_config, "eos_token_id", [ending])  # type: ignore
    [found] = same(model, [replace(r, forced_end=ForcedEnd(4, (5, 5, 5), (ending, 60))) for r in requests], [CLEAN])
    early = [ending in ids for ids in firsts]
    assert {text.stop_reason for text, ended in zip(found, early, strict=True) if ended} == {"eos"}
    assert all(len(text.token_ids) <= 4 for text, ended in zip(found, early, strict=True) if ended)
    others = [text for text, ended in zip(found, early, strict=True) if not ended]
    assert others
    assert all(text.token_ids[4:6] == (ending, 60) for text in others)


@pytest.mark.slow
def test_penalties_budgets_and_samples_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("qwen2")
    asked = sampled([replace(r, forced_end=budget(model)) for r in free(model)])
    variants = [CLEAN, *each_layer(model), *each_head(model, layers=[0])]
    without = same(model, asked, variants)
    config: Any = model.module.original_model.generation_config  # type: ignore[union-attr]
    monkeypatch.setattr(config, "repetition_penalty", 1.5)
    monkeypatch.setattr(config, "no_repeat_ngram_size", 2)
    penalised = same(model, asked, variants)
    assert penalised != without
    # A request may leave the generation config out, beside others that don't.
    mixed = [replace(r, generation_config="none") if i % 2 else r for i, r in enumerate(asked)]
    found = same(model, mixed, variants)
    assert [row[1::2] for row in found] == [row[1::2] for row in without]
    assert [row[::2] for row in found] == [row[::2] for row in penalised]


@pytest.mark.slow
@pytest.mark.parametrize("family", [family for family in EVERY if family != "laguna_elementwise"])
def test_every_family_generates_the_same_tokens(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A generation config's penalties, forced ends and samples at once, and 500 new tokens: past sliding windows, to
    the end of learnt positions, across the switch of LongRoPE."""
    model = tiny(family)
    config: Any = model.module.original_model.generation_config  # type: ignore[union-attr]
    penalties = {"min_new_tokens": 500, "repetition_penalty": 1.3, "no_repeat_ngram_size": 3}
    for name, value in penalties.items():
        monkeypatch.setattr(config, name, value)
    greedy = GenerateRequest((5, 9, 30, 41), ("\x00" * 4,), 24, item="a")
    early, late = ForcedEnd(6, (5, 5, 5), FORCED), ForcedEnd(300, (5, 5, 5), FORCED)
    thinking = replace(greedy, context_ids=(8,), sampling=WARM, forced_end=early, item="b")
    asked = [
        greedy,
        replace(greedy, generation_config="none"),
        thinking,
        replace(thinking, sampling=replace(WARM, sample=1)),
        replace(thinking, forced_end=None),
    ]
    changed = each_head(model, layers=[1], heads=[1])
    found = same(model, asked, [CLEAN, each_layer(model)[2], *changed])
    texts = [[response.token_ids for response in row] for row in found]
    assert len({tuple(row) for row in texts}) == 3
    for row in texts:
        assert row[0] != row[1]
        assert row[2] != row[3]
        assert early.forced_at(row[2]) == early.forced_at(row[3]) == 6
        assert row[2][:6] == row[4][:6]
        assert row[2][6:9] == FORCED != row[4][6:9]
    long = [replace(greedy, max_new_tokens=500), replace(thinking, forced_end=late, max_new_tokens=500)]
    [rows] = same(model, long, changed)
    assert [(len(row.token_ids), row.stop_reason) for row in rows] == [(500, "length")] * 2
    assert rows[0].token_ids[:24] == texts[2][0]
    assert late.forced_at(rows[1].token_ids) == 300
    assert rows[1].token_ids[300:303] == FORCED
    assert all(len(set(row.token_ids[-150:])) > 20 for row in rows)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GenerateRequest((1,), (), 8, forced_end=ForcedEnd(6, (1,), (2, 3))), "budget of 6 tokens and the 2"),
        (lambda: ForcedEnd(-1, (1,), (2,)), "after -1 tokens"),
        (lambda: ForcedEnd(3, (), (2,)), "with 0 tokens of a marker"),
        (lambda: ForcedEnd(3, (1,), ()), "and 0 to force"),
    ],
)
def test_an_end_that_leaves_no_answer_is_refused(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
    assert GenerateRequest((1,), (), 9, forced_end=ForcedEnd(6, (1,), (2, 3))).max_new_tokens == 9
