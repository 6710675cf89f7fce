"""A TransformerBridge in raw mode as a `HookedModel`."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from jaxtyping import Float, Int
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from lensprune.models.base import ModelFacts, NamedHook
from lensprune.models.positions import PositionGuard

__all__ = ["BridgeModel", "unhooked_copy"]


_MASKS_ATTRIBUTE = "_lensprune_masks"


class BridgeModel:
    """Adapter around a TransformerBridge.

    `raw_model` is the Hugging Face model without hook points, on the same parameter tensors. It is ``None`` if it can't
    be built for a bridge that the user booted (`lensprune.models.twin`); `no_raw_model` then says why.
    """

    def __init__(
        self,
        bridge: Any,
        tokenizer: PreTrainedTokenizerBase,
        facts: ModelFacts,
        raw_model: PreTrainedModel | None = None,
        no_raw_model: str = "",
    ) -> None:
        self._bridge = bridge
        self._tokenizer = tokenizer
        self._facts = facts
        self._raw_model = raw_model
        self.no_raw_model = no_raw_model
        self._hook_names = frozenset(bridge.hook_dict)
        self._cache_argument = _hand_on_cache(bridge)
        self._guard = PositionGuard(bridge.original_model)
        if not bridge.__dict__.get(_MASKS_ATTRIBUTE):
            _bound_masks(bridge)
            bridge.__dict__[_MASKS_ATTRIBUTE] = True

    @property
    def facts(self) -> ModelFacts:
        """Shape and provenance."""
        return self._facts

    @facts.setter
    def facts(self, facts: ModelFacts) -> None:
        self._facts = facts

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's original tokenizer."""
        return self._tokenizer

    @property
    def module(self) -> Any:
        """The TransformerBridge itself."""
        return self._bridge

    @property
    def raw_model(self) -> PreTrainedModel | None:
        """The same weights without hook points, or ``None``."""
        return self._raw_model

    def forward(
        self,
        input_ids: Int[torch.Tensor, "batch pos"],
        attention_mask: Int[torch.Tensor, "batch all_pos"],
        position_ids: Int[torch.Tensor, "batch pos"],
        *,
        cache: Any | None = None,
        logits_to_keep: int = 0,
    ) -> Float[torch.Tensor, "batch kept d_vocab"]:
        """Run the model on left-padded rows and return logits; see `HookedModel.forward`.

        Gradient mode is left to the caller.
        """
        self._guard.check(attention_mask, position_ids)
        device = self.facts.device
        output = self._bridge.original_model(
            input_ids=input_ids.to(device),
            attention_mask=attention_mask.to(device),
            position_ids=position_ids.to(device),
            use_cache=cache is not None,
            logits_to_keep=logits_to_keep,
            **{self._cache_argument: cache},
        )
        return output.logits

    def new_cache(self) -> DynamicCache:
        """An empty key/value cache for `forward`."""
        return DynamicCache(config=self._bridge.original_model.config)

    def hooks(self, fwd_hooks: Sequence[NamedHook]) -> AbstractContextManager[Any]:
        """Context manager in which `fwd_hooks` are part of every forward pass."""
        return self._bridge.hooks(fwd_hooks=list(fwd_hooks))

    def hook_names(self) -> frozenset[str]:
        """Every hook name that `hooks` accepts, aliases included."""
        return self._hook_names


def _hand_on_cache(bridge: Any) -> str:
    """Let the bridge's attention see the key/value cache, and return the name of the model's own argument for it.

    transformers 5.24 renamed ``past_key_values`` to ``cache`` on models, layers and attention, while TransformerLens
    4.3 reads only the old name: without this the cache stays empty, and every decoded token sees only itself.
    """
    parameters = inspect.signature(bridge.original_model.forward).parameters
    if "cache" not in parameters:
        return "past_key_values"

    def rename(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if "cache" in kwargs and kwargs.get("past_key_values") is None:
            kwargs = {**kwargs, "past_key_values": kwargs["cache"]}
            del kwargs["cache"]
        return args, kwargs

    for layer in _layers_without_cache(bridge):
        bridge.blocks[layer].attn.register_forward_pre_hook(rename, with_kwargs=True)
    return "cache"


def _layers_without_cache(bridge: Any) -> list[int]:
    """Layers whose attention leaves the cache empty when the model passes it under its own name."""
    cache = DynamicCache(config=bridge.original_model.config)
    token = torch.zeros(1, 1, dtype=torch.long, device=next(bridge.original_model.parameters()).device)
    with torch.no_grad():
        bridge.original_model(
            input_ids=token, attention_mask=torch.ones_like(token), position_ids=token, use_cache=True, cache=cache
        )
    attending = [layer for layer, block in enumerate(bridge.blocks) if hasattr(block, "attn")]
    return [layer for layer in attending if layer >= len(cache.layers) or not cache.get_seq_length(layer)]


def _bound_masks(bridge: Any) -> None:
    """Keep float64 masks finite in float32, in which TransformerLens's attention adds them.

    Otherwise a padded position, which may attend to nothing, becomes NaN, and with it every later position of its row.
    """
    least = torch.finfo(torch.float32).min

    def bound(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        mask = kwargs.get("attention_mask")
        if isinstance(mask, torch.Tensor) and mask.dtype == torch.float64:
            kwargs = {**kwargs, "attention_mask": mask.clamp(min=least)}
        return args, kwargs

    for block in bridge.blocks:
        if hasattr(block, "attn"):
            block.attn.register_forward_pre_hook(bound, with_kwargs=True)


def unhooked_copy(model: PreTrainedModel) -> PreTrainedModel:
    """Copy the module tree of `model` but none of its tensors: parameters and buffers are shared."""
    shared: dict[int, Any] = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    return copy.deepcopy(model, memo=shared)
