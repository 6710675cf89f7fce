"""The fast executor gives the hooked executor's numbers, on every family and kind of variant."""

from __future__ import annotations

import re
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any
from weakref import WeakKeyDictionary

import pytest
import torch

from lensprune.ablation import (
    CLEAN,
    MLP,
    Ablation,
    Attention,
    Head,
    KVGroup,
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
from lensprune.ablation.kinds import ablation_kind
from lensprune.ablation.reference import replacement
from lensprune.engine import ForkedExecutor, HookedExecutor, make_executor
from lensprune.engine.edits import LayerEdits, edits_by_layer
from lensprune.engine.layers import LayerStack, UnsupportedByFastPath
from lensprune.engine.probe import checked_stack, difference_of, probe_variants, probed_kinds, probed_parts
from lensprune.engine.tree import build_tree, chunk_sequences
from lensprune.errors import UserError
from lensprune.models import as_hooked_model, load_model
from lensprune.models.base import HookedModel
from lensprune.protocols.requests import LoglikelihoodRequest, Request
from tests.families_table import fallback_sentence
from tests.helpers.families import FAMILIES, GATED_CONFIGS, LEFT_TO_HOOKED, save_folder
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


@pytest.mark.parametrize("family", [*FAMILIES, *GATED_CONFIGS])
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
    with pytest.warns(UserWarning, match="using the hooked executor instead"):
        executor = make_executor("forked", without_twin)
    assert executor.name == "hooked"
    assert make_executor("forked", tiny("llama")).name == "forked"
    with pytest.raises(UserError, match="forked"):
        make_executor("froked", tiny("llama"))


@pytest.mark.parametrize(("family", "reason"), [(family, reason) for family, (_, reason) in LEFT_TO_HOOKED.items()])
def test_attention_of_another_kind_is_left_to_the_hooked_executor(family: str, reason: str) -> None:
    model = tiny(family)
    with pytest.warns(UserWarning, match=f"using the hooked executor instead: .*{reason}"):
        executor = make_executor("forked", model)
    assert executor.name == "hooked"
    requests = likelihood_requests(model)
    chosen = [CLEAN, *each_layer(model, layers=[1])]
    assert list(executor.run(requests, chosen)) == list(HookedExecutor(model).run(requests, chosen))


def forget_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lensprune.engine.probe._PASSED", WeakKeyDictionary())


def _norm_before_projection(block: Any, layer: Any) -> Any:
    """BitNet's norm, whose input is attention's result."""
    return layer.self_attn.attn_sub_norm


@pytest.mark.parametrize(
    ("family", "method", "wrong", "reason"),
    [
        (
            "bitnet",
            "_projection",
            _norm_before_projection,
            r"a probe's log-probability under L\d\.H\d\.\w+ is .* by hooks",
        ),
        ("llama", "_projection", lambda block, layer: torch.nn.Identity(), "does not call .* hook_z"),
        (
            "gemma3",
            "_branch_module",
            lambda block, layer, site: layer.mlp,
            r"under L\d\.attention\.skip is .* by hooks",
        ),
    ],
)
def test_an_edit_at_the_wrong_place_is_refused(
    family: str, method: str, wrong: Callable[..., Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny(family)
    checked_stack(model)
    forget_probes(monkeypatch)
    monkeypatch.setattr(LayerStack, method, staticmethod(wrong))
    with pytest.raises(UnsupportedByFastPath, match=reason):
        checked_stack(model)


def test_a_projection_that_receives_other_values_than_were_set_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_probes(monkeypatch)
    right = LayerEdits.edit_z
    # Far below what a log-probability would show.
    monkeypatch.setattr(LayerEdits, "edit_z", lambda self, z, positions: right(self, z, positions) + 1e-12)
    with pytest.raises(UnsupportedByFastPath, match=r"does not receive what L1\.H3\.zero sets"):
        checked_stack(tiny("llama"))


def test_the_probe_covers_every_part_and_kind_of_the_package() -> None:
    """What the tables hold before any plug-in adds to them, and in one variant per kind where layers are enough."""
    assert {part.component for part in probed_parts()} == {Layer, Attention, MLP, Head, KVGroup}
    assert [kind.name for kind in probed_kinds()] == ["skip", "zero", "mean", "resample", "optimal"]
    # As many as fit, one to a layer.
    deep = probe_variants(replace(tiny("llama").facts, n_layers=30))
    assert [len(variant.ablations) for variant in deep] == [0, 23]
    assert [a.name for a in deep[1].ablations[:4]] == ["L7.mlp.skip", "L8.attention.skip", "L9.skip", "L10.H0.zero"]
    assert deep[1].ablations[-1].name == "L29.optimal"
    assert [len(variant.ablations) for variant in probe_variants(tiny("llama").facts)] == [0, *[2] * 11, 1]


@pytest.mark.parametrize(
    "sizes", [{"n_layers": 1}, {"n_layers": 2}, {"n_layers": 32}, {"n_key_value_heads": 1}, {"n_key_value_heads": 4}]
)
def test_no_edit_of_a_probe_hides_another(sizes: dict[str, int]) -> None:
    facts = replace(tiny("llama").facts, **sizes)
    variants = probe_variants(facts)
    for kind in probed_kinds():
        found = [a.component for v in variants for a in v.ablations if a.kind == kind.name]
        assert sorted(c.part.name for c in found) == sorted(p.name for p in probed_parts() if kind.allows(p))
    for variant in variants:
        layers = [a.component.layer for a in variant.ablations]
        assert len(layers) == len(set(layers))
        variant.check(facts)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind.name for kind in probed_kinds()])
def test_the_probe_sees_and_names_every_kind_of_part_in_every_way(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An edit that is not made, of one kind of part, on the fast path alone."""
    forget_probes(monkeypatch)
    model = tiny("llama")
    probed = [a for v in probe_variants(model.facts) for a in v.ablations if a.kind == kind]
    assert {type(a.component) for a in probed} == {
        part.component for part in probed_parts() if ablation_kind(kind).allows(part)
    }
    for ablation in probed:

        def without(assigned: Any, *args: Any, planted: Ablation = ablation) -> dict[int, LayerEdits]:
            kept = [(replace(v, ablations=tuple(a for a in v.ablations if a != planted)), r) for v, r in assigned]
            return edits_by_layer(kept, *args)

        named = rf"(under|what) {re.escape(ablation.name)}( is| sets)"
        if ablation.replaces_block:
            # There is no place for keys and values of a layer that should not have run.
            named += "|is not in list"
        for module in ("fork", "decoding.row_group"):
            with monkeypatch.context() as patch:
                patch.setattr(f"lensprune.engine.{module}.edits_by_layer", without)
                with pytest.raises(UnsupportedByFastPath, match=named):
                    checked_stack(model)
    checked_stack(model)


def test_two_faults_that_cancel_in_one_layer_are_seen_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where attention and MLP read the same residual, and their sum is added to it."""
    forget_probes(monkeypatch)
    model = tiny("gpt_neox")
    stack = checked_stack(model)
    both = Variant("both", (Ablation(Attention(1), "mean"), Ablation(MLP(1), "mean")))
    signs = {Attention: 1, MLP: -1}

    def shifted(ablation: Ablation, *given: Any) -> torch.Tensor:
        value = replacement(ablation, *given)
        sign = signs.get(type(ablation.component), 0) if ablation.kind == "mean" else 0
        return value + sign * torch.linspace(-1, 1, value.shape[-1], device=value.device)

    monkeypatch.setattr("lensprune.engine.edits.replacement", shifted)
    assert difference_of(model, stack, [CLEAN, both]) is None
    for ablation in both.ablations:
        alone = difference_of(model, stack, [CLEAN, Variant("alone", (ablation,))])
        assert alone is not None
        assert f"under {ablation.name} is" in alone
    forget_probes(monkeypatch)
    with pytest.raises(UnsupportedByFastPath, match=r"under L\d\.(mlp|attention)\.mean is .* by hooks"):
        checked_stack(model)


def test_the_documentation_lists_what_is_left_to_the_hooked_executor() -> None:
    page = (Path(__file__).parents[3] / "docs" / "reference" / "models.md").read_text()
    assert fallback_sentence() in page, "run `make families`"


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

    forget_probes(monkeypatch)
    monkeypatch.setattr("lensprune.engine.decoding.decoder.fork_variants", fail)
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
