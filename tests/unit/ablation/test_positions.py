"""Ablations at some positions: what is chosen, and what that changes under both executors."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch

import lensprune as lp
from lensprune.ablation import BatchState, VariantHooks, collect_reference
from lensprune.ablation.positions import positions_named
from lensprune.ablation.variants import CLEAN, Ablation, Variant, as_variants, variant_named
from lensprune.engine import ForkedExecutor, HookedExecutor
from lensprune.engine.marks import Marks, marked, token_of
from lensprune.engine.traces import trace_tokens
from lensprune.errors import LensPruneError, UserError
from lensprune.models.base import HookedModel
from lensprune.models.spans import text_of_tokens
from lensprune.protocols.requests import GenerateRequest, GenerateResponse, LoglikelihoodRequest, Request
from lensprune.runs.variant_json import variant_from_json, variant_to_json
from tests.helpers.logits import last_logits, logits_under_hooks
from tests.helpers.planted.circuits import LEAK, ids, model_of
from tests.helpers.tiny_models import generation_requests, likelihood_requests, tiny
from tests.helpers.tolerances import assert_responses_agree

OTHERS = ("gpt2", "gemma3", "mixtral")
PROMPTS = [[10, 11, 12, 13], [20, 21, 22], [30, 31, 32, 33, 34, 35]]
EVERYWHERE = "0:,generated[0:]"
"""All positions, written so that the whole part is not ablated as such."""


def chosen(at: str, size: int = 6) -> list[int]:
    return [i for i, is_chosen in enumerate(positions_named(at).in_prompt(size, lambda: ("", []))) if is_chosen]


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        ("all", [0, 1, 2, 3, 4, 5]),
        ("prompt", [0, 1, 2, 3, 4, 5]),
        ("last", [5]),
        ("generated", []),
        ("0", [0]),
        ("-1", [5]),
        ("-2", [4]),
        ("-2:", [4, 5]),
        (":2", [0, 1]),
        ("1:-3", [1, 2]),
        ("9", []),
        (" 0 , last ", [0, 5]),
    ],
)
def test_positions_of_the_prompt(at: str, expected: list[int]) -> None:
    assert chosen(at) == expected


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        ("all", [0, 1, 2, 3]),
        ("generated", [0, 1, 2, 3]),
        ("generated[1]", [1]),
        ("generated[1:3]", [1, 2]),
        ("generated[2:]", [2, 3]),
        ("last", []),
        ("prompt", []),
        ("0,generated[0]", [0]),
    ],
)
def test_positions_after_the_prompt(at: str, expected: list[int]) -> None:
    assert [step for step in range(4) if positions_named(at).in_generated(step)] == expected


def test_a_regular_expression_chooses_the_tokens_that_it_touches() -> None:
    positions = positions_named("regex:b,|cd")
    assert positions.in_prompt(5, lambda: ("ab,cde", [(0, 2), (2, 3), (3, 4), (4, 6), (6, 6)])) == [
        True,
        True,
        True,
        True,
        False,
    ]


@pytest.mark.parametrize(
    ("at", "message"),
    [
        ("lst", r"positions 'lst': 'lst' can't be read: did you mean last"),
        ("", "positions '' can't be read: expected all, prompt, last"),
        ("last,", "positions 'last,': '' can't be read"),
        ("7:3", "'7:3' is empty"),
        ("-3:-5", "'-3:-5' is empty"),
        ("regex:(", r"the regular expression '\(' can't be read"),
        ("generated[-2:]", "counts from the end, which is not known"),
        ("generated[x]", r"'generated\[x\]' can't be read"),
    ],
)
def test_what_cannot_be_read_is_refused(at: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Ablation(lp.Head(0, 0), "zero", at=at)


def test_token_classes() -> None:
    kinds = ["", "step[0].operand", "step[0].result", "step[1].result", "words"]

    def places(at: str) -> list[int]:
        return [i for i, is_chosen in enumerate(positions_named(at).in_classes(kinds)) if is_chosen]

    assert places("result") == [2, 3]
    assert places("step[1].result") == [3]
    assert places("step[0]") == [1, 2]
    assert places("words,operand") == [1, 4]
    assert places("last") == places("regex:result") == []
    model = tiny("llama")
    request = LoglikelihoodRequest((5, 6), (7, 8, 9), classes=("", *kinds[:4]))
    assert Marks(model, as_variants("L0.H0@result,0.zero")).of(request) == (1, 0, 0, 1)
    for unclassed in (LoglikelihoodRequest((5, 6), (7, 8)), GenerateRequest((5, 6), (), 2)):
        with pytest.raises(UserError, match="'result' are a class of tokens of worked solutions, which only"):
            Marks(model, as_variants("L0.H0@result.zero")).of(unclassed)


@pytest.mark.parametrize(
    "name",
    [
        "L1.H0@last.zero",
        "L1.H0@step[2].result.zero",
        "L1@-5:.skip",
        "L0-2@0,generated.skip",
        "L1.mlp@regex:a+b.c.mean",
        "L1.H0@last+L2.H3@0:2.zero",
        "L1.H0@regex:x+y+L2.H3.zero",
    ],
)
def test_names_and_json_go_there_and_back(name: str) -> None:
    variant = variant_named(name)
    assert variant.name == name
    assert variant.at
    assert variant_from_json(variant_to_json(variant)) == variant
    assert [set(v.at) for v in as_variants([name, list(variant.ablations)])] == [set(variant.at)] * 2


def test_places_of_a_name() -> None:
    both = variant_named("L1.H0@regex:x+y+L2.H3.zero")
    assert both.ablations == (Ablation(lp.Head(1, 0) @ "regex:x+y", "zero"), Ablation(lp.Head(2, 3), "zero"))
    assert variant_named("L01.H00@last.zero").name == "L1.H0@last.zero"
    assert both.ablation == "zero+zero@regex:x+y"
    assert "at" not in variant_to_json(variant_named("L1.H0@all.zero"))["ablations"][0]
    with pytest.raises(UserError, match="has positions already"):
        Ablation(lp.Head(0, 0) @ "last", "zero", at="0")
    with pytest.raises(UserError, match=r"Head\(layer=0, head=0\) @ 'last' says where but not how"):
        as_variants(lp.Head(0, 0) @ "last")


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_text_of_tokens(family: str) -> None:
    tokenizer = tiny(family).tokenizer
    ids = tokenizer.encode("The cat sat: naïve 🙂, 3 + 4 = 7.")
    text, spans = text_of_tokens(tokenizer, ids)
    assert text == tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    assert [text[a:b] for a, b in spans] != [text] * len(ids)
    assert spans[0][0] == 0
    assert spans[-1][1] == len(text)
    assert all(a == (c, d) or a[1] == c for a, (c, d) in pairwise(spans))


def requests_of(model: HookedModel) -> list[Request]:
    shared = tuple(model.tokenizer.encode("the quick brown fox jumps over the lazy dog and runs away from it all "))
    scored = [
        LoglikelihoodRequest(shared + tuple(model.tokenizer.encode(question)), tuple(model.tokenizer.encode(option)))
        for question in ("one", "other then", "another cat")
        for option in (" yes", " no", " yes and no")
    ]
    # The same input, with another end of the prompt: what is last there is not last here.
    moved = [
        LoglikelihoodRequest(r.context_ids + r.continuation_ids[:1], r.continuation_ids[1:])
        for r in scored
        if len(r.continuation_ids) > 1
    ]
    return [*likelihood_requests(model)[:4], *scored, *moved, *generation_requests(model, 5)]


def variants_of(model: HookedModel) -> list[Variant]:
    top = model.facts.n_layers - 1
    single = [
        Ablation(lp.Head(0, 1), "zero", "last"),
        Ablation(lp.Head(top, 1), "mean", "regex:cat"),
        Ablation(lp.KVGroup(1, 0), "zero", "generated"),
        Ablation(lp.Layer(0), "skip", "-3:"),
        Ablation(lp.Layer(1), "mean", "generated[1:3],0"),
        Ablation(lp.Layer(top), "skip", "last,generated"),
        Ablation(lp.Attention(1), "zero", "0:-2"),
        Ablation(lp.MLP(0), "resample", "generated,regex:the"),
        Ablation(lp.MLP(top), "zero", "last"),
    ]
    mixed = [
        Ablation(lp.Layer(1), "skip", "2"),
        Ablation(lp.Head(1, 0), "zero"),
        Ablation(lp.Head(2, 0), "zero", "last"),
    ]
    return [CLEAN, *as_variants([*single, "L1.skip"]), Variant("mixed", tuple(mixed))]


@pytest.mark.parametrize("family", ["llama", *(pytest.param(f, marks=pytest.mark.slow) for f in OTHERS)])
def test_both_executors_give_the_same_numbers(family: str) -> None:
    """Also where inputs are equal and prompts are not, and where a prefix is shared and its positions are not."""
    model = tiny(family)
    variants, requests = variants_of(model), requests_of(model)
    reference = collect_reference(model, PROMPTS, variants, mode="per_position")
    expected = list(HookedExecutor(model).run(requests, variants, reference=reference))
    clean = expected[0].responses
    assert all(answered.responses != clean for answered in expected[1:])
    for tokens in (8192, 60) if family == "llama" else (60,):
        found = list(ForkedExecutor(model, tokens).run(requests, variants, reference=reference))
        assert_responses_agree(model, requests, found, expected, reference)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_all_positions_are_the_whole_part(family: str) -> None:
    model = tiny(family)
    requests = requests_of(model)
    top = model.facts.n_layers - 1
    whole = [
        Ablation(lp.Head(0, 1), "zero"),
        Ablation(lp.Head(top, 0), "mean"),
        Ablation(lp.Layer(1), "mean"),
        Ablation(lp.MLP(top), "resample"),
        Ablation(lp.Attention(1), "zero"),
    ]
    reference = collect_reference(model, PROMPTS, [Variant("v", tuple(whole))])
    wholes = [Variant(a.name, (a,)) for a in whole]
    parts = [Variant(a.name, (replace(a, at=EVERYWHERE),)) for a in whole]
    for executor in (HookedExecutor(model), ForkedExecutor(model)):
        [clean, *found] = executor.run(requests, [CLEAN, *wholes], reference=reference)
        same = list(executor.run(requests, parts, reference=reference))
        for a, b in zip(same, found, strict=True):
            assert a.responses == b.responses != clean.responses


def test_no_position_is_the_clean_model() -> None:
    model = tiny("llama")
    [nowhere] = as_variants("L1.H0@regex:xyzzy.zero")
    for executor in (HookedExecutor(model), ForkedExecutor(model)):
        [clean, same] = executor.run(requests_of(model), [CLEAN, nowhere])
        assert clean.responses == same.responses


def test_marks_travel_with_tokens() -> None:
    model = tiny("llama")
    request = LoglikelihoodRequest((5, 6, 7), (8, 9, 10))
    marks = Marks(model, as_variants(["L0@last.skip", "L1@generated.skip", "L1.H0@last.zero"]))
    assert marks.selectors == ("last", "generated")
    assert marks.of(request) == (0, 0, 1, 2, 2)
    joined = marked(request, marks.of(request))
    assert joined.input_ids != request.input_ids
    assert tuple(map(token_of, joined.context_ids + joined.continuation_ids)) == (5, 6, 7, 8, 9, 10)
    padded = torch.zeros(2, 6, dtype=torch.long)
    masks = marks.masks([marks.of(request), (1, 2)], padded)
    assert masks["last"].nonzero().tolist() == [[0, 3], [1, 4]]
    assert masks["generated"].nonzero().tolist() == [[0, 4], [0, 5], [1, 5]]
    assert marks.of(GenerateRequest((5, 6), (), 3)) == (0, 1)


def test_traces_take_positions() -> None:
    model = tiny("llama")
    variants = [CLEAN, *as_variants(["L1.H0@last.zero", "L0@generated[1:].skip", "L2.H1@generated.zero"])]
    requests = [r for r in requests_of(model) if isinstance(r, LoglikelihoodRequest) and len(r.continuation_ids) > 2]
    slow = trace_tokens(model, requests, variants, executor="hooked")
    fast = trace_tokens(model, requests, variants, executor="forked")
    for of_variant, also in zip(slow, fast, strict=True):
        for a, b in zip(of_variant, also, strict=True):
            assert a.logprob == pytest.approx(b.logprob, abs=1e-4)
    # Nothing changes before the first changed token.
    assert all(a.kl[0] > 0 for a in slow[1])
    assert all(a.kl[:2].max() < 1e-6 < a.kl[2:].max() for a in slow[2])


def test_a_hook_that_gets_no_positions_says_so() -> None:
    model = tiny("llama")
    [variant] = as_variants("L1.H0@last.zero")
    hooks = VariantHooks(model, variant, BatchState(torch.arange(3)[None]))
    with pytest.raises(LensPruneError, match="did not set which tokens are at 'last'"):
        logits_under_hooks(model, [5, 6, 7], hooks.named)


def test_a_hook_written_by_hand_does_the_same() -> None:
    """Rows of custom hooks are not padded, so the prompt's last token is the last of a row that scores one token."""
    model = tiny("llama")
    end = {len(r.context_ids) - 1: r for r in requests_of(model) if isinstance(r, LoglikelihoodRequest)}
    requests = [r for r in end.values() if len(r.continuation_ids) == 1] + generation_requests(model, 4)

    def zero_last(z: torch.Tensor, hook: Any) -> torch.Tensor:
        z = z.clone()
        # Decode steps have one token per row, which follows the prompt.
        z[:, -1, 2] *= int(z.shape[1] == 1)
        return z

    by_hand = Variant("by hand", hooks=(("blocks.1.attn.hook_z", zero_last),))
    [clean, expected, found] = HookedExecutor(model).run(requests, [CLEAN, by_hand, *as_variants("L1.H2@last.zero")])
    for one, other, before in zip(found.responses, expected.responses, clean.responses, strict=True):
        if isinstance(one, GenerateResponse):
            assert one == other
        else:
            assert one.logprob == pytest.approx(other.logprob, abs=1e-5)
            assert abs(one.logprob - before.logprob) > 1e-4


@pytest.mark.parametrize("shape", ["llama", "gpt2"])
def test_disjoint_positions_add_up_in_a_linear_model(shape: str) -> None:
    """L0.H1 writes the tokens so far, and L1.H2 adds twice their mean over the positions: 10 · 2 · mean of shares."""
    model = model_of("linear", shape)
    clean, *parts, whole = last_logits(
        model, ids(model, "a b a c"), "clean", "L0.H1@0:2.zero", "L0.H1@regex:c.zero", "L0.H1@2,3.zero", "L0.H1.zero"
    )
    changes = [clean - part for part in parts]
    a = model.tokenizer.convert_tokens_to_ids("a")
    # The shares of "a" at positions 0 to 4 are 0, 1/2, 1/3, 2/4, 2/5.
    for change, shares in zip(changes, (1 / 2, 2 / 5, 1 / 3 + 2 / 4), strict=True):
        assert float(change[a]) == pytest.approx(20 / 5 * shares, abs=10 * LEAK)
    torch.testing.assert_close(sum(changes), clean - whole, atol=30 * LEAK, rtol=0)


def test_a_planted_head_is_needed_at_its_position_alone() -> None:
    """In ``<bos> 3 + 4 =``, L0.H3 reads the operand at the operator, and L1.H0 moves it to the end."""
    model = model_of("arithmetic", "llama")
    places = [v.name for at in range(5) for v in lp.each_head(model, at=str(at))]
    clean, *others = last_logits(model, ids(model, "3 + 4 ="), "clean", *places)
    answer = model.tokenizer.convert_tokens_to_ids("3")
    needed = {n for n, logits in zip(places, others, strict=True) if abs(logits[answer] - clean[answer]) > 1}
    assert needed == {"L0.H3@2.zero", "L1.H0@4.zero"}
    assert float(clean[answer]) == pytest.approx(10, abs=10 * LEAK)


@pytest.mark.parametrize(
    "ablation",
    [
        lp.Ablation(lp.Layer(1), "skip"),
        lp.Ablation(lp.Head(0, 1), "zero", at="-2:"),
        lp.Ablation(lp.Head(0, 1), "cut", source="0"),
    ],
)
def test_an_ablation_is_printed_with_what_it_was_given(ablation: lp.Ablation) -> None:
    names = {"Ablation": lp.Ablation, "Layer": lp.Layer, "Head": lp.Head}
    assert eval(repr(ablation), names) == ablation
    assert ("at=" in repr(ablation)) == (ablation.at != "all")
    assert ("source=" in repr(ablation)) == (ablation.source is not None)
