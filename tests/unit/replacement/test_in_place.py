"""Exchanges are exact, undone exactly, and equal to independent computations."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import lensprune.replacement.in_place as in_place_module
from lensprune.ablation import CLEAN
from lensprune.engine import ForkedExecutor, HookedExecutor
from lensprune.errors import UserError
from lensprune.replacement import Part
from lensprune.replacement.in_place import replaced
from lensprune.replacement.pair import weight_change
from lensprune.replacement.parts import COMPONENTS, enumerate_parts, whole_model
from lensprune.replacement.tensors import part_tensors
from tests.helpers.families import FAMILIES
from tests.helpers.model_pairs import fresh, pair_logits, state, tiny_pair, twin_logits
from tests.helpers.tiny_models import likelihood_requests
from tests.helpers.tolerances import assert_responses_agree, assert_tensors_agree

SPLIT = ("phi3", "gpt2", "gpt_neox")
"""Families whose bridge splits a fused projection."""


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("family", FAMILIES)
def test_full_swap_is_the_other_model_bit_for_bit(family: str) -> None:
    pair = tiny_pair(family)
    before = state(pair.base), state(pair.distilled)
    hooked = pair_logits(pair.base), pair_logits(pair.distilled)
    plain = twin_logits(pair.base), twin_logits(pair.distilled)
    with pair.replaced(whole_model(pair.base.facts)):
        assert torch.equal(pair_logits(pair.base), hooked[1])
        assert torch.equal(pair_logits(pair.distilled), hooked[0])
        assert torch.equal(twin_logits(pair.base), plain[1])
        assert torch.equal(twin_logits(pair.distilled), plain[0])
        assert same(state(pair.base), before[1])
    assert same(state(pair.base), before[0])
    assert same(state(pair.distilled), before[1])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_part_reaches_hooked_and_plain_model_alike(family: str) -> None:
    pair = tiny_pair(family)
    clean, before = twin_logits(pair.base), state(pair.base)
    for component in COMPONENTS:
        if component == "head" and family in SPLIT:
            continue
        for part in enumerate_parts(pair.base.facts, component)[:5]:
            with pair.replaced([part]):
                plain = twin_logits(pair.base)
                assert not torch.equal(plain, clean), part.label
                assert_tensors_agree(pair_logits(pair.base), plain, torch.float32)
            assert same(state(pair.base), before), part.label


@pytest.mark.parametrize("family", SPLIT)
def test_heads_of_fused_projections_are_refused(family: str) -> None:
    with pytest.raises(UserError, match="use component attention"), tiny_pair(family).replaced([Part("head", 0, 0)]):
        raise AssertionError("a head of a fused projection was replaced")


def test_parts_cover_every_weight_once() -> None:
    """attention + mlp + norms = layer, and the whole model is the sum of its parts."""
    pair = tiny_pair("llama")
    facts = pair.base.facts

    def names(parts: list[Part]) -> list[str]:
        return sorted(name for part in parts for name in part_tensors(pair.base, part))

    layer = names([Part("layer", 1)])
    assert names([Part("attention", 1), Part("mlp", 1), Part("norms", 1)]) == layer
    raw: Any = pair.base.raw_model
    assert names(whole_model(facts)) == sorted(name for name, _ in raw.named_parameters())
    # All query heads together are the query and output projections.
    heads = weight_change(pair, [Part("head", 1, h) for h in range(facts.n_heads)])
    q, o = (raw.get_submodule(f"model.layers.1.self_attn.{n}_proj").weight for n in "qo")
    other: Any = pair.distilled.raw_model
    q2, o2 = (other.get_submodule(f"model.layers.1.self_attn.{n}_proj").weight for n in "qo")
    expected = ((q - q2).norm() ** 2 + (o - o2).norm() ** 2).sqrt()
    assert_tensors_agree(heads.absolute, expected, torch.float32)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_output_projection_against_hooks(family: str) -> None:
    """Exchanging W_O alone is the clean model with attention_output = z · W_O of the other model, written by a hook."""
    pair = tiny_pair(family)
    layer = 1
    other: Any = pair.distilled.raw_model
    weight = other.get_submodule(f"model.layers.{layer}.self_attn.o_proj").weight
    kept: dict[str, torch.Tensor] = {}

    def keep(z: torch.Tensor, hook: Any) -> None:
        kept["z"] = z

    def project(out: torch.Tensor, hook: Any) -> torch.Tensor:
        return kept["z"].flatten(2) @ weight.T

    hooks = [(f"blocks.{layer}.attn.hook_z", keep), (f"blocks.{layer}.attn.hook_out", project)]
    expected = pair_logits(pair.base, hooks)
    assert not torch.allclose(expected, pair_logits(pair.base), atol=1e-2)
    with pair.replaced([Part("attention_output", layer)]):
        assert_tensors_agree(pair_logits(pair.base), expected, torch.float32)
        assert_tensors_agree(twin_logits(pair.base), expected, torch.float32)


def test_one_head_against_hooks() -> None:
    """A head's W_O alone, by hand: z of this head times the other model's columns."""
    pair = tiny_pair("llama")
    before = twin_logits(pair.base)
    mine = part_tensors(pair.base, Part("head", 0, 3))
    theirs = part_tensors(pair.distilled, Part("head", 0, 3))
    assert {tuple(t.shape) for t in mine.values()} == {(8, 32), (32, 8)}
    raw: Any = pair.base.raw_model
    q, o = (raw.get_submodule(f"model.layers.0.self_attn.{n}_proj").weight for n in "qo")
    rest = q[:24].clone(), o[:, :24].clone()
    with pair.replaced([Part("head", 0, 3)]):
        assert torch.equal(q[:24], rest[0])
        assert torch.equal(o[:, :24], rest[1])
        assert not torch.equal(twin_logits(pair.base), before)
    assert all(not torch.equal(mine[name], theirs[name]) for name in mine)
    assert torch.equal(twin_logits(pair.base), before)


def test_self_swap_and_no_swap_change_nothing() -> None:
    from lensprune.replacement import model_pair

    pair = model_pair(fresh("llama", 0), fresh("llama", 0))
    before = pair_logits(pair.base)
    with pair.replaced(whole_model(pair.base.facts)):
        assert torch.equal(pair_logits(pair.base), before)
    with tiny_pair("llama").replaced([]):
        assert torch.equal(pair_logits(tiny_pair("llama").base), before)
    assert weight_change(pair, whole_model(pair.base.facts)).absolute == 0


def test_ends_and_middle_of_the_line() -> None:
    pair = tiny_pair("llama")
    part = Part("mlp", 1)
    before, old = state(pair.base), pair_logits(pair.base)
    [name, *_] = part_tensors(pair.base, part)
    a, b = (part_tensors(m, part)[name] for m in (pair.base, pair.distilled))
    old_a, old_b = a.clone(), b.clone()
    with pair.replaced([part], alpha=0.0):
        assert torch.equal(pair_logits(pair.base), old)
    with pair.replaced([part]):
        at_one = pair_logits(pair.base)
        assert torch.equal(a, old_b)
    with pair.replaced([part], alpha=1 - 1e-9):
        assert_tensors_agree(pair_logits(pair.base), at_one, torch.float32)
    with pair.replaced([part], alpha=0.25):
        assert_tensors_agree(a, 0.75 * old_a + 0.25 * old_b, torch.float32, roundings=2)
        assert_tensors_agree(b, 0.75 * old_b + 0.25 * old_a, torch.float32, roundings=2)
    assert same(state(pair.base), before)


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_undone_after_an_exception(alpha: float) -> None:
    pair = tiny_pair("gpt2")
    before = state(pair.base), state(pair.distilled)

    def fail() -> None:
        with pair.replaced([Part("layer", 0), Part("embed")], alpha):
            assert not same(state(pair.base), before[0])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert same(state(pair.base), before[0])
    assert same(state(pair.distilled), before[1])


class Interrupted(torch.Tensor):
    """A tensor whose copy number `stop` (over all of them) is not made, since Ctrl-C comes first."""

    stop = -1
    count = 0

    def copy_(self, source: Any, non_blocking: bool = False) -> Any:
        Interrupted.count += 1
        if Interrupted.count - 1 == Interrupted.stop:
            raise KeyboardInterrupt
        return super().copy_(source, non_blocking)


@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize("stop", range(0, 12))
def test_an_interrupt_on_the_way_in_or_out_leaves_both_as_they_were(
    stop: int, alpha: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C before each copy in turn: at α = 1 three chunks are copied on the way in and three on the way out."""
    monkeypatch.setattr(in_place_module, "_CHUNK", 8)
    monkeypatch.setattr(Interrupted, "count", 0)
    monkeypatch.setattr(Interrupted, "stop", stop)
    a, b = torch.arange(24.0).reshape(6, 4), -torch.arange(24.0).reshape(6, 4).exp()
    old = a.clone(), b.clone()
    entered, interrupted = False, False
    try:
        with replaced([(a.as_subclass(Interrupted), b.as_subclass(Interrupted))], alpha):
            entered = True
            assert not torch.equal(a, old[0])
            assert not torch.equal(b, old[1])
    except KeyboardInterrupt:
        interrupted = True
    copies = 6 if alpha == 1 else 2
    assert (entered, interrupted) == (stop >= copies, stop < 2 * copies)
    assert torch.equal(a, old[0])
    assert torch.equal(b, old[1])


def test_bfloat16_comes_back_bit_for_bit() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(50, 3).bfloat16(), torch.randn(50, 3).bfloat16()
    old = a.clone(), b.clone()
    for alpha in (0.3, 1.0):
        with replaced([(a, b[:]), (a[:0], b[:0])], alpha):
            assert not torch.equal(a, old[0])
        assert torch.equal(a, old[0])
        assert torch.equal(b, old[1])


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "gpt_neox"])
def test_both_executors_see_the_exchange(family: str) -> None:
    pair = tiny_pair(family)
    requests = likelihood_requests(pair.base)
    forked, hooked = ForkedExecutor(pair.base), HookedExecutor(pair.base)
    for part in (Part("attention", 1), Part("mlp", 0), Part("attention_output", 2)):
        with pair.replaced([part]):
            [fast], [slow] = forked.run(requests, [CLEAN]), hooked.run(requests, [CLEAN])
            assert_responses_agree(pair.base, requests, [fast], [slow])
