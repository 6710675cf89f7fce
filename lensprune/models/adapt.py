"""`as_hooked_model`: any TransformerLens model as a `HookedModel`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lensprune.errors import UserError
from lensprune.models.base import AnyModel, BosPolicy, HookedModel
from lensprune.models.boot import ADAPTER_ATTRIBUTE, attach
from lensprune.models.bridge import BridgeModel
from lensprune.models.current import check_no_hooks, up_to_date, user_hooks
from lensprune.models.facts import Origin, hash_weights, model_facts
from lensprune.models.hooked_transformer import (
    HookedTransformerModel,
    adapt_hooked_transformer,
    is_hooked_transformer,
)
from lensprune.models.self_check import check_hook_points
from lensprune.models.tokenizers import check_bos_policy, hash_tokenizer
from lensprune.models.twin import NoTwin, twin_of

__all__ = ["as_hooked_model", "current_model"]


def as_hooked_model(
    model: AnyModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    bos: BosPolicy | None = None,
    *,
    keep_hooks: bool = False,
) -> HookedModel:
    """Return the adapter of a model: its facts, tokenizer and hook points.

    The facts date from loading, or from the last sweep; `current_model` updates them.

    Args:
        model: a `HookedModel`, a bridge from `load_model`, or any TransformerBridge or HookedTransformer.
        tokenizer: replaces the tokenizer. A TransformerBridge rebuilds its tokenizer with BOS always on; without this
            argument the original is read again from its source, without the network.
        bos: replaces the BOS policy; ``None`` keeps the model's (``tokenizer`` for a model that you booted).
        keep_hooks: treat hooks that you left on the model as part of it; the facts name them.

    Raises:
        UserError: not a TransformerLens model; its original tokenizer or a hook point cannot be found; it has a custom
            hook; or it was put into compatibility mode.
        LensPruneError: the self-check of a new model failed.

    Examples:
        >>> facts = lp.as_hooked_model(model).facts
        >>> facts.name, facts.n_layers, facts.n_heads, facts.n_key_value_heads
        ('toy-distilled', 4, 4, 2)
    """
    carried = getattr(model, "__dict__", {}).get(ADAPTER_ATTRIBUTE, model)
    if isinstance(carried, HookedModel):
        return _with(carried, tokenizer, bos, keep_hooks, given=model is carried)
    if isinstance(model, TransformerBridge):
        _refuse_compatibility(model)
        kept = _kept_hooks(model, keep_hooks)
        return _keeping(_adapt_bridge(model, tokenizer, bos or "tokenizer"), kept)
    if is_hooked_transformer(model):
        kept = _kept_hooks(model, keep_hooks)
        adapted = adapt_hooked_transformer(model, tokenizer or _original_tokenizer(model), bos or "tokenizer")
        return _keeping(adapted, kept)
    kind = f"{type(model).__module__}.{type(model).__name__}"
    raise UserError(f"a model of type {kind} has no hooks: give lensprune.load_model(...), or a TransformerBridge")


def current_model(model: AnyModel) -> HookedModel:
    """The up-to-date adapter of a loaded model: edited weights get a new hash, and a moved or cast model its new device
    and dtype.

    Reads every weight, so call it once at the start of a measurement. Raises as `as_hooked_model` does.
    """
    adapter = as_hooked_model(model)
    if isinstance(adapter, (BridgeModel, HookedTransformerModel)):
        _refuse_compatibility(adapter.module)
        check_no_hooks(adapter.module, adapter.facts.kept_hooks)
        up_to_date(adapter)
    return adapter


def _kept_hooks(module: torch.nn.Module, keep_hooks: bool) -> tuple[str, ...]:
    kept = user_hooks(module) if keep_hooks else ()
    check_no_hooks(module, kept)
    return kept


def _keeping(adapter: HookedModel, kept: tuple[str, ...]) -> HookedModel:
    if kept == adapter.facts.kept_hooks:
        return adapter
    facts = replace(adapter.facts, kept_hooks=kept)
    if isinstance(adapter, BridgeModel):
        return BridgeModel(adapter.module, adapter.tokenizer, facts, adapter.raw_model, adapter.no_raw_model)
    assert isinstance(adapter, HookedTransformerModel)
    return HookedTransformerModel(adapter.module, adapter.tokenizer, facts)


def _refuse_compatibility(module: Any) -> None:
    if getattr(module, "compatibility_mode", False):
        raise UserError(
            "this TransformerBridge is in compatibility mode, which shifts logits: boot it again without that mode"
        )


def _with(
    adapter: HookedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    bos: BosPolicy | None,
    keep_hooks: bool,
    *,
    given: bool,
) -> HookedModel:
    if isinstance(adapter, (BridgeModel, HookedTransformerModel)):
        _refuse_compatibility(adapter.module)
        # An adapter keeps the hooks that it was made to keep.
        if not given or keep_hooks:
            adapter = _keeping(adapter, _kept_hooks(adapter.module, keep_hooks))
    tokenizer = tokenizer or adapter.tokenizer
    bos = bos or adapter.facts.bos_policy
    if tokenizer is adapter.tokenizer and bos == adapter.facts.bos_policy:
        return adapter
    check_bos_policy(bos, tokenizer)
    facts = replace(adapter.facts, bos_policy=bos, tokenizer_hash=hash_tokenizer(tokenizer))
    if isinstance(adapter, BridgeModel):
        return BridgeModel(adapter.module, tokenizer, facts, adapter.raw_model, adapter.no_raw_model)
    if isinstance(adapter, HookedTransformerModel):
        return HookedTransformerModel(adapter.module, tokenizer, facts)
    raise UserError(
        f"the tokenizer and BOS policy of a {type(adapter).__name__} cannot be replaced: set them where it is made"
    )


def _adapt_bridge(bridge: TransformerBridge, tokenizer: PreTrainedTokenizerBase | None, bos: BosPolicy) -> BridgeModel:
    tokenizer = tokenizer or _original_tokenizer(bridge)
    check_bos_policy(bos, tokenizer)
    parameter = next(bridge.original_model.parameters())
    name = str(bridge.cfg.model_name)
    facts = model_facts(
        Origin(name, "user", str(bridge.cfg.architecture), hash_weights(bridge.original_model.state_dict())),
        bridge.cfg,
        getattr(bridge.original_model, "config", None),
        tokenizer,
        dtype=parameter.dtype,
        device=str(parameter.device),
        bos=bos,
    )
    try:
        twin, why = twin_of(bridge), ""
    except NoTwin as reason:
        twin, why = None, str(reason)
    adapter = BridgeModel(bridge, tokenizer, facts, twin, why)
    check_hook_points(adapter)
    attach(bridge, adapter)
    return adapter


def _original_tokenizer(model: Any) -> PreTrainedTokenizerBase:
    rebuilt = model.tokenizer
    if rebuilt is None:
        raise UserError(f"this {type(model).__name__} has no tokenizer: pass tokenizer=")
    try:
        return AutoTokenizer.from_pretrained(rebuilt.name_or_path, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(
            f"the original tokenizer of this {type(model).__name__} cannot be read again from "
            f"{rebuilt.name_or_path!r}, and the model's own always adds BOS: pass tokenizer="
        ) from error
