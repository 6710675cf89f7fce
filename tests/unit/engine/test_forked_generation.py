"""Forked decoding writes the hooked executor's tokens, however rows are grouped, shared, split and finished."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from lensprune.ablation import (
    CLEAN,
    MLP,
    Ablation,
    Attention,
    Head,
    Layer,
    ReferenceActivations,
    Variant,
    collect_reference,
    each_head,
    each_layer,
)
from lensprune.ablation.kinds import MeanMode
from lensprune.engine import ForkedExecutor, HookedExecutor
from lensprune.engine.decoding.prompts import PromptSet, length_blocks, shared_groups
from lensprune.engine.decoding.step_attention import DecodeAttention
from lensprune.engine.scoring import finite_rows
from lensprune.models import as_hooked_model, load_model
from lensprune.protocols import build_requests
from lensprune.protocols.requests import GenerateRequest, GenerateResponse, Request
from lensprune.tasks import load_task
from tests import DEVICE
from tests.helpers.families import FAMILIES, GATED_CONFIGS, save_folder
from tests.helpers.generation import REFERENCE_PROMPTS, requests_for, requests_for_windows, variants_for
from tests.helpers.tiny_models import tiny
from tests.helpers.tolerances import assert_responses_agree

ALL = (*FAMILIES, *GATED_CONFIGS)


@pytest.mark.parametrize("family", ["llama", *(pytest.param(f, marks=pytest.mark.slow) for f in ALL if f != "llama")])
def test_same_tokens_as_hooked(family: str) -> None:
    model = tiny(family)
    chosen, requests = variants_for(model), requests_for(model)
    mode: MeanMode = "per_position" if ALL.index(family) % 2 else "pooled"
    reference = collect_reference(model, REFERENCE_PROMPTS, chosen, mode=mode)
    expected = list(HookedExecutor(model).run(requests, chosen, reference=reference))
    done: list[int] = []
    found = list(ForkedExecutor(model).run(requests, chosen, reference=reference, progress=done.append))
    assert_responses_agree(model, requests, found, expected, reference)
    assert sum(done) == len(requests) * len(chosen)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "max_tokens", "max_rows", "max_kv_bytes"),
    [
        ("llama", 8192, 40, 2**30),
        ("gemma2", 8192, 40, 2**30),
        ("mistral", 8192, 384, 300_000),
        ("gemma2", 60, 7, 2**30),
        ("llama", 1, 1, 1),
    ],
)
def test_any_budget_gives_the_same_tokens(family: str, max_tokens: int, max_rows: int, max_kv_bytes: int) -> None:
    model = tiny(family)
    chosen, requests = variants_for(model)[::6], requests_for(model, 9)
    reference = collect_reference(model, REFERENCE_PROMPTS, chosen)
    expected = list(HookedExecutor(model).run(requests, chosen, reference=reference))
    executor = ForkedExecutor(model, max_tokens, max_rows, max_kv_bytes)
    assert_responses_agree(
        model, requests, list(executor.run(requests, chosen, reference=reference)), expected, reference
    )


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen3", "gemma3"])
def test_long_rows_outgrow_their_buffers_and_outlive_the_rest(family: str) -> None:
    model = tiny(family)
    chosen = [CLEAN, *each_layer(model), *each_head(model, layers=[1])]
    short = [replace(r, max_new_tokens=3) for r in requests_for(model) if isinstance(r, GenerateRequest)]
    long = replace(short[1], max_new_tokens=75)
    requests: list[Request] = [*short, long, replace(short[6], max_new_tokens=40)]
    expected = list(HookedExecutor(model).run(requests, chosen))
    assert max(len(r.token_ids) for e in expected for r in e.responses if isinstance(r, GenerateResponse)) > 64
    assert_responses_agree(model, requests, list(ForkedExecutor(model).run(requests, chosen)), expected)


@pytest.mark.parametrize("window", [8, 44, 70])
def test_windows_that_end_within_a_shared_prefix(window: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = as_hooked_model(load_model(save_folder("gemma3", tmp_path, sliding_window=window)))
    requests = requests_for_windows()
    chosen = [CLEAN, *each_layer(model)]
    seen: Counter[str] = Counter()
    of_prefix = DecodeAttention._of_prefix

    def counted(self: Any, *args: Any) -> Any:
        keys = of_prefix(self, *args)
        if args[-1].window is not None:
            seen["part" if keys.allowed is not None else str(keys.k.shape[2])] += 1
        return keys

    monkeypatch.setattr(DecodeAttention, "_of_prefix", counted)
    found = list(ForkedExecutor(model).run(requests, chosen))
    assert_responses_agree(model, requests, found, list(HookedExecutor(model).run(requests, chosen)))
    # Elsewhere rows attend by a kernel.
    if DEVICE == "cpu":
        assert set(seen) == {8: {"part", "0"}, 44: {"part"}, 70: {"40", "50", "part"}}[window]


def test_stop_strings_and_eos_end_rows_as_in_the_hooked_executor() -> None:
    model = tiny("llama")
    chosen = [CLEAN, *each_layer(model), *each_head(model, layers=[1])]
    free = [r for r in requests_for(model, 20) if isinstance(r, GenerateRequest)]
    [clean] = HookedExecutor(model).run(free, [CLEAN])
    written = [r.text for r in clean.responses if isinstance(r, GenerateResponse)]
    # Pairs of letters that the model does write, at different places in different rows.
    stops = tuple(sorted({text[3:5] for text in written if text[3:5].isascii() and len(text) > 4}))
    requests: list[Request] = [replace(r, until=stops) for r in free]
    expected = list(HookedExecutor(model).run(requests, chosen))
    assert_responses_agree(model, requests, list(ForkedExecutor(model).run(requests, chosen)), expected)
    reasons = {r.stop_reason for e in expected for r in e.responses if isinstance(r, GenerateResponse)}
    assert reasons >= {"stop_string", "length"}


def test_non_finite_logits_end_a_row(tmp_path) -> None:
    model = as_hooked_model(load_model(save_folder("llama", tmp_path / "llama"), self_check=False))
    executor = ForkedExecutor(model)
    with torch.no_grad():
        # Finite until a layer that only some variants skip.
        model.module.original_model.model.layers[1].mlp.down_proj.original_component.weight.fill_(math.inf)
    chosen = [CLEAN, *each_layer(model)]
    requests = requests_for(model)
    expected = list(HookedExecutor(model).run(requests, chosen))
    assert_responses_agree(model, requests, list(executor.run(requests, chosen)), expected)
    reasons = {
        e.variant.name: {r.stop_reason for r in e.responses if isinstance(r, GenerateResponse)} for e in expected
    }
    assert reasons["clean"] == {"non_finite"}
    assert "non_finite" not in reasons["L1.skip"]


def test_variants_that_write_the_same_tokens_share_the_clean_layers() -> None:
    model = tiny("llama")
    executor = ForkedExecutor(model)
    sizes: dict[int, list[int]] = {}
    original = executor._stack.run_layer

    def counted(layer: int, hidden: torch.Tensor, *args: object) -> torch.Tensor:
        sizes.setdefault(layer, []).append(hidden.shape[1])
        return original(layer, hidden, *args)  # type: ignore[arg-type]

    executor._stack.run_layer = counted  # type: ignore[method-assign]
    # The last layer's heads: below it every variant is the clean model while tokens agree.
    request = GenerateRequest(tuple(model.tokenizer.encode("The cat sat")), ("\x00",), 2)
    last = model.facts.n_layers - 1
    list(executor.run([request], each_head(model, layers=[last])))
    n_heads = model.facts.n_heads
    decoded = [sizes[layer][-1] for layer in range(last)]
    assert max(decoded) <= n_heads
    assert sizes[last][-1] == n_heads + decoded[0]
    again = [ForkedExecutor(model).run([request], [variant]) for variant in each_head(model, layers=[last])]
    first_tokens = {
        r.responses[0].token_ids[:1] for [r] in map(list, again) if isinstance(r.responses[0], GenerateResponse)
    }
    assert decoded == [len(first_tokens)] * last


def test_real_model_writes_the_same_tokens(smollm2: Any) -> None:
    model = as_hooked_model(smollm2)
    items = build_requests(model, load_task("kv_retrieval", limit=2), "generate")
    requests = [request for item in items for request in item.requests]
    chosen = [*each_layer(model, layers=[17]), *each_head(model, layers=[12], heads=[4])]
    expected = list(HookedExecutor(model).run(requests, chosen))
    assert_responses_agree(model, requests, list(ForkedExecutor(model).run(requests, chosen)), expected)


def test_constants_of_ones_own_take_their_place_while_decoding() -> None:
    model = tiny("qwen2")
    facts = model.facts
    torch.manual_seed(0)
    ablations = [Ablation(part, "optimal") for part in (Layer(1), Attention(0), MLP(2), Head(1, 2))]
    shapes = [(facts.d_model,)] * 3 + [(facts.n_heads, facts.d_head)]
    constants = {a.component.label: torch.randn(2, *shape) for a, shape in zip(ablations, shapes, strict=True)}
    reference = ReferenceActivations(optimal=constants)
    chosen = [Variant(a.name, (a,)) for a in ablations]
    requests = requests_for(model, 6)
    expected = list(HookedExecutor(model).run(requests, chosen, reference=reference))
    assert_responses_agree(
        model, requests, list(ForkedExecutor(model).run(requests, chosen, reference=reference)), expected, reference
    )


def test_no_requests_and_no_variants() -> None:
    executor = ForkedExecutor(tiny("llama"))
    assert [answer.responses for answer in executor.run([], [CLEAN])] == [()]
    assert list(executor.run(requests_for(tiny("llama")), [])) == []


def test_variants_with_hooks_keep_their_place_among_the_others() -> None:
    model = tiny("llama")
    mine = Variant("mine", hooks=(("blocks.1.attn.hook_pattern", lambda value, hook: value * 0.5),))
    chosen = [*each_layer(model), mine, CLEAN]
    requests = requests_for(model, 5)
    expected = list(HookedExecutor(model).run(requests, chosen))
    assert_responses_agree(model, requests, list(ForkedExecutor(model).run(requests, chosen)), expected)


def test_finite_rows() -> None:
    rows = torch.zeros(5, 7)
    rows[1, 2], rows[2, 6], rows[3, 0], rows[3, 1] = math.nan, math.inf, math.inf, -math.inf
    # Finite, though their sum is not.
    rows[4] = torch.finfo(torch.float32).max
    assert finite_rows(rows).tolist() == [True, False, False, False, True]
    assert finite_rows(rows[:1]).tolist() == [True]


@pytest.mark.parametrize("seed", range(100))
def test_prompt_sets_hold_every_prompt(seed: int) -> None:
    rng = Random(seed)
    stems = [tuple(rng.randrange(3) for _ in range(rng.randrange(60))) for _ in range(3)]
    prompts = [rng.choice(stems) + tuple(rng.randrange(3) for _ in range(rng.randrange(1, 9))) for _ in range(12)]
    found = PromptSet.of(prompts)
    assert found.prompts == tuple(sorted(set(prompts)))
    for i, prompt in enumerate(found.prompts):
        rest = [found.tree.tokens[j] for j in found.rest[i][found.real[i]]]
        shared = [p for p in found.prefixes if p.first <= i < p.last]
        assert len(shared) <= 1
        prefix = [token for p in shared for token in found.tree.tokens[p.start : p.end]]
        assert tuple(prefix + rest) == prompt
        assert len(rest) >= 1
        assert bool(found.real[i, -1])
        assert int(found.lengths[i]) == len(prompt)
        assert found.tree.tokens[int(found.last_token[i])] == prompt[-1]


def test_prompts_share_what_saves_most() -> None:
    heading, first, second = (0,) * 40, (1,) * 50, (2,) * 50
    ordered = sorted([heading + body + (i,) for body in (first, second) for i in range(5)])
    # 90 × 4 tokens in each half are more than 40 × 9 in all.
    assert shared_groups(ordered) == [(0, 5, 90), (5, 10, 90)]
    assert shared_groups(sorted(heading + (i,) * 20 for i in range(3))) == [(0, 3, 40)]
    assert shared_groups([(1, 2), (1, 3)]) == [(0, 1, 0), (1, 2, 0)]


@pytest.mark.parametrize("seed", range(60))
def test_blocks_of_lengths_hold_the_fewest_tokens(seed: int) -> None:
    rng = Random(seed)
    lengths = [rng.randrange(1, 30) for _ in range(rng.randrange(1, 9))]
    most = rng.randrange(1, 4)
    found = length_blocks(lengths, most)
    assert sorted(set(found)) == list(range(max(found) + 1))
    assert max(found) < most

    def tokens(block_of: Sequence[int]) -> int:
        blocks = [[n for n, b in zip(lengths, block_of, strict=True) if b == block] for block in set(block_of)]
        return sum(len(block) * max(block) for block in blocks)

    assert tokens(found) == min(tokens(any_way) for any_way in product(range(most), repeat=len(lengths)))
    assert length_blocks([7, 7, 7]) == [0, 0, 0]
    assert length_blocks([1, 9, 2, 8, 100]) == [0, 1, 0, 1, 2]
