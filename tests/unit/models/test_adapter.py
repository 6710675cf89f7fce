"""The self-check, bridges of the user's own, tokenizers and BOS policies."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

from lensprune.errors import LensPruneError, UserError
from lensprune.models import BridgeModel, NamedHook, as_hooked_model, encode, load_model, prefix_token_id
from lensprune.models.self_check import check_hook_points, required_hooks
from tests.helpers.families import byte_tokenizer
from tests.helpers.tiny_models import folder
from tests.helpers.tolerances import assert_tensors_agree


@cache
def bridge() -> Any:
    return load_model(folder("llama"), device="cpu")


def copy_with(kind: type[BridgeModel]) -> BridgeModel:
    model = as_hooked_model(bridge())
    return kind(model.module, model.tokenizer, model.facts)


class Deaf(BridgeModel):
    """Hooks are taken and never run."""

    def hooks(self, fwd_hooks: Sequence[NamedHook]) -> AbstractContextManager[Any]:
        return nullcontext()


class ReadOnly(BridgeModel):
    """Hooks run, and what they return is dropped."""

    def hooks(self, fwd_hooks: Sequence[NamedHook]) -> AbstractContextManager[Any]:
        def drop(function: Any) -> Any:
            def call(activation: torch.Tensor, hook: Any) -> None:
                function(activation, hook)

            return call

        return super().hooks([(name, drop(function)) for name, function in fwd_hooks])


class Nameless(BridgeModel):
    """One hook point is missing."""

    def hook_names(self) -> frozenset[str]:
        return super().hook_names() - {"blocks.1.attn.hook_z"}


def test_the_self_check_passes_and_leaves_the_logits_alone() -> None:
    model = copy_with(BridgeModel)
    ids, positions = torch.arange(4, 12)[None], torch.arange(8)[None]
    with torch.no_grad():
        before = model.forward(ids, torch.ones_like(ids), positions)
        check_hook_points(model)
        after = model.forward(ids, torch.ones_like(ids), positions)
    assert torch.equal(before, after)
    assert set(required_hooks(3)) <= model.hook_names()


def test_the_self_check_fails_when_hooks_never_run() -> None:
    with pytest.raises(UserError, match=r"LlamaForCausalLM .* never runs blocks\.0\.hook_resid_pre"):
        check_hook_points(copy_with(Deaf))


def test_the_self_check_fails_when_a_hook_does_nothing() -> None:
    with pytest.raises(LensPruneError, match="ablations would silently do nothing"):
        check_hook_points(copy_with(ReadOnly))


def test_the_self_check_fails_when_a_hook_point_is_missing() -> None:
    with pytest.raises(UserError, match=r"lacks blocks\.1\.attn\.hook_z"):
        check_hook_points(copy_with(Nameless))


def test_a_bridge_of_the_users_own_is_accepted() -> None:
    own = TransformerBridge.boot_transformers(str(folder("llama")), device="cpu", dtype=torch.float32)
    model = as_hooked_model(own)
    assert model.module is own
    assert encode(model, "ab") == byte_tokenizer().encode("ab")
    assert (model.facts.source, model.facts.n_layers) == ("user", 3)
    assert as_hooked_model(own) is model
    ids, positions = torch.arange(4, 12)[None], torch.arange(8)[None]
    with torch.no_grad():
        expected = as_hooked_model(bridge()).forward(ids, torch.ones_like(ids), positions)
        found = model.forward(ids, torch.ones_like(ids), positions)
    assert_tensors_agree(found, expected, torch.float32)


def test_a_loaded_bridge_carries_its_adapter() -> None:
    model = as_hooked_model(bridge())
    assert as_hooked_model(bridge()) is model
    assert as_hooked_model(model) is model


@pytest.mark.parametrize("value", [None, "llama", torch.nn.Linear(1, 1)])
def test_what_has_no_hooks_is_refused(value: object) -> None:
    with pytest.raises(UserError, match="has no hooks"):
        as_hooked_model(value)


def test_bos_policies() -> None:
    plain, always, never = (as_hooked_model(bridge(), bos=bos) for bos in ("tokenizer", "always", "never"))
    bare = byte_tokenizer().encode("ab")
    assert len(bare) == 2
    assert encode(plain, "ab") == bare
    assert encode(never, "ab") == bare
    assert encode(always, "ab") == [1, *bare]
    assert encode(always, "<bos>ab") == [1, *bare]
    assert encode(always, "ab", add_special_tokens=False) == bare
    assert [model.facts.bos_policy for model in (plain, always, never)] == ["tokenizer", "always", "never"]
    assert as_hooked_model(bridge()).facts.bos_policy == "tokenizer"


def test_the_prefix_token_is_bos_else_eos() -> None:
    model = as_hooked_model(bridge())
    assert prefix_token_id(model) == 1
    tokenizer = byte_tokenizer()
    tokenizer.bos_token = None
    assert prefix_token_id(as_hooked_model(bridge(), tokenizer=tokenizer)) == 2
    with pytest.raises(UserError, match="needs a tokenizer with a BOS token"):
        as_hooked_model(bridge(), tokenizer=tokenizer, bos="always")
    tokenizer.eos_token = None
    without = as_hooked_model(bridge(), tokenizer=tokenizer)
    assert prefix_token_id(without) is None
    assert encode(without, "ab") == tokenizer.encode("ab")


def test_a_cache_that_stays_empty_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = BridgeModel.forward

    def without_cache(self: BridgeModel, *args: Any, cache: Any = None, **kwargs: Any) -> Any:
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(BridgeModel, "forward", without_cache)
    with pytest.raises(LensPruneError, match="cache holds 0 of 6 tokens"):
        load_model(folder("llama"), device="cpu")
