"""Cut attention edges: which weights are removed, what that changes, and how variants with them are named and run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import lensprune as lp
from lensprune.ablation.edges import check_pattern, without_edges
from lensprune.ablation.variants import CLEAN, Ablation, Variant, as_variants, variant_named
from lensprune.cli import main
from lensprune.costs.shape import model_shape
from lensprune.costs.shared import shared_costs
from lensprune.engine import ForkedExecutor, HookedExecutor
from lensprune.engine.edits import edits_by_layer
from lensprune.engine.marks import Marks
from lensprune.engine.traces import trace_tokens
from lensprune.errors import LensPruneError, UserError
from lensprune.models.base import HookedModel
from lensprune.models.model_config import load_model_config
from lensprune.planning import plan
from lensprune.protocols.requests import GenerateRequest, GenerateResponse, LoglikelihoodRequest, Request
from lensprune.runs.variant_json import variant_from_json, variant_to_json
from lensprune.sweeps.reached import check_reached
from tests.helpers.logits import last_logits, logits_under_hooks, plain_logits
from tests.helpers.planted.circuits import LEAK, ids, model_of
from tests.helpers.sweeps import sweep
from tests.helpers.tiny_models import folder, generation_requests, likelihood_requests, tiny
from tests.helpers.tolerances import assert_responses_agree, precision, rounding, size_of


def test_rows_without_some_weights() -> None:
    pattern = torch.tensor([[1.0, 0.0, 0.0], [0.25, 0.75, 0.0], [0.5, 0.3, 0.2]]).expand(1, 2, 3, 3)
    every = torch.ones(1, 3, dtype=torch.bool)
    first = torch.tensor([[True, False, False]])
    cut = without_edges(pattern, [1], ~first, first)
    assert torch.equal(cut[0, 0], pattern[0, 0])
    # Row 0 is no destination. Of row 1 the second weight is left, of row 2 the second and third.
    torch.testing.assert_close(cut[0, 1], torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.6, 0.4]]))
    assert torch.equal(without_edges(pattern, None, every, every), torch.zeros(1, 2, 3, 3))
    # Row 0 has nothing but its own weight; the third key is not seen by rows 0 and 1, which stay as they are.
    assert not without_edges(pattern, None, first, first)[0, :, 0].any()
    last = torch.tensor([[False, False, True]])
    assert torch.equal(without_edges(pattern, None, every, last)[0, :, :2], pattern[0, :, :2])


@pytest.mark.parametrize("shape", ["llama", "gpt2"])
def test_only_the_planted_edges_matter(shape: str) -> None:
    """In ``<bos> 3 + 4 =``, L0.H3 reads the operand (1) at the operator (2), and L1.H0 moves it to the end (4)."""
    model = model_of("arithmetic", shape)
    pairs = [(destination, source) for destination in range(5) for source in range(destination + 1)]
    names = [v.name for d, s in pairs for v in lp.each_head(model, "cut", at=str(d), source=str(s))]
    assert len(names) == 15 * 8
    clean, zero, *others = last_logits(model, ids(model, "3 + 4 ="), "clean", "L1.H0@4.zero", *names)
    answer = model.tokenizer.convert_tokens_to_ids("3")
    needed = {n: logits for n, logits in zip(names, others, strict=True) if abs(logits[answer] - clean[answer]) > 1}
    assert set(needed) == {"L0.H3@2<-1.cut", "L1.H0@4<-2.cut"}
    # Without the edge the head writes none of the answer, as without the head.
    assert float(clean[answer] - zero[answer]) == pytest.approx(10, abs=20 * LEAK)
    assert float(needed["L1.H0@4<-2.cut"][answer]) == pytest.approx(float(zero[answer]), abs=20 * LEAK)


@pytest.mark.parametrize("shape", ["llama", "gpt2"])
def test_the_weights_that_are_left_grow(shape: str) -> None:
    """L1.H2 adds 20 times the mean, over the positions that it sees, of the share of each token so far; see LINEAR."""
    model = model_of("linear", shape)
    names = ["L1.H2@last<-1.cut", "L0.H1@3<-1.cut", "L0.H1@2<-1.cut", "L0.H1@2:4<-1.cut"]
    clean, *cut = last_logits(model, ids(model, "a b a c"), "clean", *names)
    a = model.tokenizer.convert_tokens_to_ids("a")
    from_last, at_3, at_2, at_both = (float(clean[a] - logits[a]) for logits in cut)
    # The shares of "a" at positions 0 to 4 are 0, 1/2, 1/3, 2/4, 2/5; without 1 as a source, four positions are left.
    shares = [0, 1 / 2, 1 / 3, 2 / 4, 2 / 5]
    assert from_last == pytest.approx(20 * (sum(shares) / 5 - (sum(shares) - shares[1]) / 4), abs=20 * LEAK)
    # Position 3 sees <bos> a b a, of which one of two "a" goes, and position 2 sees <bos> a b.
    assert at_3 == pytest.approx(20 / 5 * (2 / 4 - 1 / 3), abs=20 * LEAK)
    assert at_2 == pytest.approx(20 / 5 * (1 / 3 - 0), abs=20 * LEAK)
    # Disjoint destinations add up in a linear model.
    assert at_both == pytest.approx(at_2 + at_3, abs=20 * LEAK)


def requests_of(model: HookedModel) -> list[Request]:
    return [*likelihood_requests(model), *generation_requests(model, 5)]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_no_edges_at_all_are_no_head(family: str) -> None:
    model = tiny(family)
    names = ["L1.H1<-all.cut", "L2.KV0@last<-0:,generated.cut", "L0.H2@generated<-all.cut"]
    zeros = ["L1.H1.zero", "L2.KV0@last.zero", "L0.H2@generated.zero"]
    clean, *answered = HookedExecutor(model).run(requests_of(model), as_variants(["clean", *names, *zeros]))
    for cut, zero in zip(answered[:3], answered[3:], strict=True):
        assert cut.responses == zero.responses != clean.responses


def masked(head: int | None, destinations: slice, sources: slice) -> Any:
    """A hook on scores that hides sources from destinations, as the causal mask does."""

    def hide(scores: torch.Tensor, hook: Any) -> torch.Tensor:
        scores = scores.clone()
        heads = slice(None) if head is None else slice(head, head + 1)
        scores[:, heads, destinations, sources] = -torch.inf
        return scores

    return hide


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_softmax_over_the_other_sources(family: str) -> None:
    model = tiny(family)
    prompt = model.tokenizer.encode("The cat sat on the mat.")
    hook = ("blocks.1.attn.hook_attn_scores", masked(2, slice(-6, None), slice(1, 9)))
    expected = logits_under_hooks(model, prompt, [hook])[0, -1]
    clean, cut = last_logits(model, prompt, "clean", "L1.H2@-6:<-1:9.cut")
    torch.testing.assert_close(cut, expected, atol=1e-5, rtol=1e-5)
    assert (cut - clean).abs().max() > 1e-2


def test_all_attention_against_the_mask_of_transformers() -> None:
    model = tiny("llama")
    prompt = model.tokenizer.encode("The cat sat on the mat.")
    seen = torch.ones(len(prompt), len(prompt), dtype=torch.bool).tril()
    seen[-4:, 4:11] = False
    mask = torch.zeros(1, 1, *seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min).to(model.facts.device)
    hf: Any = model.raw_model  # type: ignore[attr-defined]
    with torch.no_grad():
        tokens = torch.tensor([prompt], device=model.facts.device)
        expected = hf(input_ids=tokens, attention_mask=mask, use_cache=False).logits[0, -1]
    every = "+".join(f"L{layer}.attention@-4:<-regex:cat sat" for layer in range(3))
    clean, cut = last_logits(model, prompt, "clean", f"{every}.cut")
    torch.testing.assert_close(cut, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(clean, plain_logits(hf, prompt)[0, -1], atol=1e-4, rtol=1e-4)
    assert (cut - clean).abs().max() > 1e-2


def edges_of(model: HookedModel) -> tuple[Variant, ...]:
    top = model.facts.n_layers - 1
    return as_variants(
        [
            "L1.H1@last,generated<-0:3.cut",
            "L1.H0@generated<-generated[0:2].cut",
            f"L{top}.KV0<-regex:at.cut",
            "L0.attention@-2:,generated<-1:-2.cut",
            "L0.H1@last<-0+L1.H2<-1:4.cut",
        ]
    )


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_both_executors_give_the_same_numbers(family: str) -> None:
    model = tiny(family)
    requests, variants = requests_of(model), [CLEAN, *edges_of(model), *as_variants("L1.H0@last.zero")]
    expected = list(HookedExecutor(model).run(requests, variants))
    assert all(answered.responses != expected[0].responses for answered in expected[1:])
    found = list(ForkedExecutor(model, 60).run(requests, variants))
    assert_responses_agree(model, requests, found, expected)
    scored = [r for r in requests if isinstance(r, LoglikelihoodRequest)]
    slow, fast = (trace_tokens(model, scored, variants, executor=name) for name in ("hooked", "forked"))
    for a, b in zip(slow, fast, strict=True):
        assert [t.logprob for t in a] == [pytest.approx(t.logprob, abs=1e-4) for t in b]
    assert max(t.kl.max() for t in slow[1]) > 1e-3
    with pytest.raises(LensPruneError, match="only hooks can cut attention edges"):
        edits_by_layer([(variants[1], slice(None))], None, model.facts)


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_generated_texts_are_those_of_a_mask_without_a_cache(family: str) -> None:
    """Mistral's window of 8 tokens drops earlier keys from its cache."""
    model = tiny(family)
    prompts = [model.tokenizer.encode(text) for text in ("The cat sat", "A long, long time ago")]
    requests = [GenerateRequest(tuple(prompt), ("\x00",), 8) for prompt in prompts]
    names = ["L0.attention@generated<-generated[0:2].cut", "L0.attention@last,generated<-4:-1.cut"]
    clean, *cut = HookedExecutor(model).run(requests, [CLEAN, *as_variants(names)])
    assert all(answered.responses != clean.responses for answered in cut)
    for i, prompt in enumerate(prompts):
        n = len(prompt)
        hooks = [
            ("blocks.0.attn.hook_attn_scores", masked(None, slice(n, None), slice(n, n + 2))),
            ("blocks.0.attn.hook_attn_scores", masked(None, slice(n - 1, None), slice(4, n - 1))),
        ]
        for answered, hook in zip(cut, hooks, strict=True):
            response = answered.responses[i]
            assert isinstance(response, GenerateResponse)
            new = list(response.token_ids)
            logits = logits_under_hooks(model, [*prompt, *new][:-1], [hook])[0, n - 1 :].cpu()
            short = logits.max(-1).values - logits[torch.arange(len(new)), new]
            assert float(short.max()) <= rounding(precision(model), size_of(logits), terms=2)


@pytest.mark.parametrize(
    "name",
    [
        "L1.H0@last<-0.cut",
        "L1.H0<-regex:a+b<-c@d.e.cut",
        "L1.KV0@regex:x+y<-all.cut",
        "L1.attention@-5:<-generated.cut",
        "L1.H0@last<-0+L2.H3<-1:3.cut",
        "L1.H0@regex:a<-b+c.zero",
    ],
)
def test_names_and_json_go_there_and_back(name: str) -> None:
    variant = variant_named(name)
    assert variant.name == name
    assert variant.needs_hooks == name.endswith("cut")
    assert variant_from_json(variant_to_json(variant)) == variant
    assert as_variants([list(variant.ablations)]) == (variant,)


def test_parts_of_a_name() -> None:
    both = variant_named("L1.H0@last<-0+L02.H3<-1:3.cut")
    assert both.ablations == (
        Ablation(lp.Head(1, 0) @ "last", "cut", source="0"),
        Ablation(lp.Head(2, 3), "cut", source="1:3"),
    )
    assert both.ablation == "cut<-1:3+cut@last<-0"
    assert both.at == ("last",)
    assert Marks(tiny("llama"), [both]).selectors == both.selectors == ("last", "0", "1:3")
    assert "source" not in variant_to_json(variant_named("L1.H0@last.zero"))["ablations"][0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Ablation(lp.Head(0, 0), "cut"), "cut needs source positions: add source, like 0, -5:-1"),
        (
            lambda: Ablation(lp.Head(0, 0), "zero", source="0"),
            "source '0' is given, but zero cuts no attention edges",
        ),
        (lambda: Ablation(lp.Head(0, 0), "cut", source="lst"), "'lst' can't be read: did you mean last"),
        (lambda: Ablation(lp.Layer(0), "cut", source="0"), "cut removes attention edges, but L0 is neither heads nor"),
        (lambda: lp.VariantSelection("mlp", "cut", source="0"), "but mlp are neither heads nor attention: use skip"),
        (lambda: lp.VariantSelection("heads", "cut"), "cut needs source positions"),
        (
            lambda: lp.VariantSelection("heads", source="0"),
            "zero cuts no attention edges: use cut, or leave",
        ),
        (lambda: Ablation(lp.Head(0, 0), "cut", "regex:<-", "0"), r"write <\[-\] instead"),
        (lambda: variant_named("L0.H0@last.cut"), "cut needs source positions"),
        (lambda: variant_named("L0.mlp<-0.cut"), "L0.mlp is neither heads nor attention"),
    ],
)
def test_what_is_not_an_edge_is_refused(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize(
    ("family", "why"),
    [
        ("gpt_neo", "GPTNeoForCausalLM: layer 0 does not multiply its values by the weights at attn.hook_pattern"),
        ("gpt_oss", r"GptOssForCausalLM: the attention weights of layer 0 don't sum to 1 \(an attention sink"),
    ],
)
def test_models_that_do_not_multiply_by_the_hooked_weights_are_refused(family: str, why: str) -> None:
    model = tiny(family)
    with pytest.raises(UserError, match=f"cut does not work with {why}.*; use zero, mean or resample"):
        check_pattern(model)
    with pytest.raises(UserError, match="cut does not work with"):
        list(HookedExecutor(model).run(likelihood_requests(model)[:1], as_variants("L1.H0<-0.cut")))
    check_pattern(tiny("llama"))


@pytest.mark.slow
def test_a_sweep_of_cut_edges(tmp_path: Path) -> None:
    heads = lp.VariantSelection("heads", "cut", layers="1", heads="0-1", at="last", source="regex:[A-Z]")
    run = sweep(folder("llama"), tmp_path / "run", tasks="facts", protocols="continuation", variants=heads)
    summary = run.summary()
    assert list(summary["variant"])[1:] == ["L1.H0@last<-regex:[A-Z].cut", "L1.H1@last<-regex:[A-Z].cut"]
    assert set(summary["ablation"]) == {"", "cut@last<-regex:[A-Z]"}
    assert list(summary["component"])[1:] == ["head", "head"]
    assert summary["mean_gold_logprob"].nunique() == 3
    next((tmp_path / "run" / "records").glob("*H1*")).unlink()
    assert lp.resume(tmp_path / "run").summary().equals(summary)


def test_edges_that_no_prompt_has_are_refused() -> None:
    def refused(message: str, variants: str, **options: Any) -> None:
        with pytest.raises(UserError, match=message):
            sweep(folder("llama"), tasks="facts", protocols="generate", variants=variants, **options)

    refused("no token of the 3 items is at 'regex:xyzzy'", "L0.H0@last<-regex:xyzzy.cut")
    refused("no token of the 3 items at '0:3' can attend to one at 'last'", "L0.H0@0:3<-last.cut")
    refused("no token of the 3 items at 'last' can attend to one at 'generated'", "L0.H0@last<-generated.cut")
    refused("screen estimates the removal of whole parts, not of attention edges as cut", "L0.H0<-0.cut", screen=0.5)
    with pytest.raises(UserError, match="cut does not work with GPTNeo"):
        sweep(folder("gpt_neo"), variants="L0.H0<-0.cut")


def test_items_without_an_edge_are_counted_once(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny("llama")
    items = [[LoglikelihoodRequest(tuple(model.tokenizer.encode(text)), (7, 8))] for text in ("a1b", "ab1", "abc")]
    with caplog.at_level(logging.WARNING, "lensprune"):
        check_reached(model, items, as_variants("L0.H0@last<-regex:1.cut"), "here")
        assert caplog.messages == [
            "here: no token of 1 of 3 items is at 'regex:1'; on these, what is removed there changes nothing"
        ]
        caplog.clear()
        check_reached(model, items, as_variants("L0.H0@:2<-regex:[1c].cut"), "here")
        assert caplog.messages == [
            "here: no token of 2 of 3 items at ':2' can attend to one at 'regex:[1c]'; on these, what is removed there "
            "changes nothing"
        ]


def test_a_plan_counts_them_as_the_hooked_executor_runs_them() -> None:
    config = load_model_config(folder("llama"))
    requests = likelihood_requests(tiny("llama"))
    mine = Variant("mine", hooks=(("blocks.1.attn.hook_pattern", lambda pattern, hook: pattern / 2),))
    [zero, cut] = as_variants(["L1.H0.zero", "L1.H0<-0.cut"])
    costs = shared_costs(model_shape(config), config.facts, requests, [CLEAN, zero, cut, mine], None)
    assert costs[cut.name] == costs["mine"]
    assert costs[cut.name].flops > costs[zero.name].flops
    planned = plan(str(folder("llama")), "facts", "default", "L0.H0@last<-0.cut", limit=3, flops=1e12, bandwidth=1e11)
    assert planned.n_variants == 2


def test_the_command_line_takes_sources(capsys: pytest.CaptureFixture[str]) -> None:
    def run(*more: str) -> tuple[int, Sequence[str]]:
        options = ["--model", str(folder("llama")), "--task", "facts", "--protocol", "default", "--limit", "2"]
        options += ["--shots", "0", "--device", "cpu", "--over", "heads", "--layers", "0", "--heads", "0", "--json"]
        return main(["sweep", *options, *more]), capsys.readouterr()

    code, printed = run("--ablation", "cut", "--at", "last", "--source=-5:-1")
    assert code == 0
    assert "L0.H0@last<--5:-1.cut" in printed[0]
    code, printed = run("--ablation", "cut")
    assert code == 2
    assert "cut needs source positions" in printed[1]
