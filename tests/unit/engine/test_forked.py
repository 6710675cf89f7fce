"""The fast executor gives the hooked executor's numbers, on every family and kind of variant."""

from __future__ import annotations

from copy import copy
from pathlib import Path
from random import Random
from typing import Any

import pytest

from lensprune.ablation import (
    CLEAN,
    MLP,
    Ablation,
    Head,
    Layer,
    Variant,
    collect_reference,
    each_attention,
    each_head,
    each_kv_group,
    each_layer,
    each_mlp,
    layer_range,
)
from lensprune.engine import ForkedExecutor, HookedExecutor, make_executor
from lensprune.engine.layers import UnsupportedByFastPath
from lensprune.engine.tree import build_tree, chunk_sequences
from lensprune.errors import UserError
from lensprune.models import as_hooked_model, load_model
from lensprune.models.base import HookedModel
from lensprune.protocols.requests import LoglikelihoodRequest, Request
from tests.helpers.families import FAMILIES, save_folder
from tests.helpers.tiny_models import generation_requests, likelihood_requests, tiny
from tests.helpers.tolerances import assert_responses_agree

PROMPTS = [[10, 11, 12, 13], [20, 21, 22], [30, 31, 32, 33, 34, 35]]


def shared_prefix_requests(model: HookedModel) -> list[Request]:
    encode = model.tokenizer.encode
    prefix = tuple(encode("the quick brown fox jumps over the lazy dog and runs away from all it ever knew " * 2))
    return [
        LoglikelihoodRequest(prefix + tuple(encode(question)), tuple(encode(option)))
        for question in ("one", "other", "oops then what is it")
        for option in (" yes", " no", " yes and no")
    ]


def variants(model: HookedModel) -> list[Variant]:
    mixed = (
        Ablation(Head(0, 1), "zero"),
        Ablation(MLP(0), "zero"),
        Ablation(Head(1, 0), "resample"),
        Ablation(Layer(2), "skip"),
    )
    return [
        CLEAN,
        *each_layer(model),
        *each_layer(model, "mean", [1]),
        *each_layer(model, "resample", [0]),
        *each_attention(model),
        *each_attention(model, "mean", [2]),
        *each_mlp(model),
        *each_mlp(model, "resample", [0]),
        *each_head(model, layers=[0, 2], heads=[1, 3]),
        *each_head(model, "mean", [1], [0]),
        *each_kv_group(model, layers=[1]),
        layer_range(model, 0, 1),
        Variant("mixed", mixed),
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_same_numbers_as_hooked(family: str) -> None:
    model = tiny(family)
    chosen = variants(model)
    requests = [*likelihood_requests(model), *shared_prefix_requests(model), *generation_requests(model, 2)[:1]]
    reference = collect_reference(model, PROMPTS, chosen, mode="per_position")
    expected = list(HookedExecutor(model).run(requests, chosen, reference=reference))
    for max_tokens in (8192, 100):
        done: list[int] = []
        executor = ForkedExecutor(model, max_tokens)
        found = list(executor.run(requests, chosen, reference=reference, progress=done.append))
        assert sum(done) == len(requests) * len(chosen)
        assert [mine.variant for mine in found] == chosen
        assert_responses_agree(model, requests, found, expected, reference)


def test_user_hooks_take_the_hooked_path() -> None:
    model = tiny("llama")
    mine = Variant("mine", hooks=(("blocks.1.attn.hook_pattern", lambda value, hook: value * 0.5),))
    requests = likelihood_requests(model)
    [fast] = ForkedExecutor(model).run(requests, [mine])
    [slow] = HookedExecutor(model).run(requests, [mine])
    assert fast == slow


def test_unsupported_model_falls_back_with_a_warning() -> None:
    without_twin: Any = copy(tiny("llama"))
    without_twin._raw_model = None
    with pytest.warns(UserWarning, match="hooked one takes over"):
        executor = make_executor("forked", without_twin)
    assert executor.name == "hooked"
    assert make_executor("forked", tiny("llama")).name == "forked"
    with pytest.raises(UserError, match="forked"):
        make_executor("froked", tiny("llama"))


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("gpt_neo", "cannot run layer by layer"),
        ("falcon", "cannot run layer by layer"),
        ("bloom", "cannot find its layers"),
        ("gpt_oss", "layer 0 has attention sinks"),
        ("qwen2_moe", "layer 1 attends to 40 tokens, but"),
    ],
)
def test_attention_of_another_kind_is_left_to_the_hooked_executor(family: str, reason: str) -> None:
    model = tiny(family)
    with pytest.warns(UserWarning, match=f"hooked one takes over: .*{reason}"):
        executor = make_executor("forked", model)
    assert executor.name == "hooked"
    requests = likelihood_requests(model)
    chosen = [CLEAN, *each_layer(model, layers=[1])]
    assert list(executor.run(requests, chosen)) == list(HookedExecutor(model).run(requests, chosen))


def test_a_window_that_no_text_exceeds_is_none(tmp_path: Path) -> None:
    model = as_hooked_model(load_model(save_folder("qwen2_moe", tmp_path / "model", sliding_window=512)))
    assert make_executor("forked", model).name == "forked"


@pytest.mark.parametrize(
    ("error", "raised"), [(RuntimeError("shape is invalid"), UnsupportedByFastPath), (MemoryError(), MemoryError)]
)
def test_any_error_on_the_probe_but_want_of_memory_is_a_refusal(
    error: Exception, raised: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr("lensprune.engine.forked.fork_variants", fail)
    with pytest.raises(raised) as caught:
        ForkedExecutor(tiny("llama"))
    assert error in (caught.value, caught.value.__cause__)


@pytest.mark.parametrize("seed", range(200))
def test_tree_holds_every_sequence_once(seed: int) -> None:
    rng = Random(seed)
    prefix = tuple(rng.randrange(3) for _ in range(rng.randrange(9)))
    sequences = [prefix + tuple(rng.randrange(3) for _ in range(rng.randrange(1, 12))) for _ in range(10)]
    tree = build_tree(sequences, rng.choice([0, 1, 4, 8]))
    for sequence in sequences:
        nodes = [tree.nodes[i] for i in tree.path(sequence)]
        flat = [i for node in nodes for i in range(node.start, node.end)]
        assert tuple(tree.tokens[i] for i in flat) == sequence
        assert [tree.positions[i] for i in flat] == list(range(len(sequence)))
        assert tree.flat_positions(sequence, len(sequence)) == flat
    for i, node in enumerate(tree.nodes):
        for j, other in enumerate(tree.nodes):
            ancestor = j
            while ancestor not in (-1, i):
                ancestor = tree.nodes[ancestor].parent
            assert (ancestor == i) == (node.start <= other.start < node.subtree_end)
    assert sorted(s for chunk in chunk_sequences(sequences, 15) for s in chunk) == sorted(set(sequences))
