"""The interface of a model of any TransformerLens class to the rest of the package."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from jaxtyping import Float, Int
    from transformers import PreTrainedTokenizerBase

__all__ = ["AnyModel", "BosPolicy", "HookFunction", "HookedModel", "ModelFacts", "ModelOrName", "NamedHook"]

BosPolicy = Literal["tokenizer", "always", "never"]
"""``tokenizer``: special tokens as added by the tokenizer (lm-eval's default);
``always`` / ``never``: one BOS token at the start of every prompt / none."""

HookFunction: TypeAlias = "Callable[[torch.Tensor, Any], torch.Tensor | None]"
"""TransformerLens's hook signature ``fn(activation, hook)``; ``None`` leaves the activation as it is."""

NamedHook = tuple[str, HookFunction]


@dataclass(frozen=True)
class ModelFacts:
    """A model's shape, and everything that determines its numbers.

    `n_key_value_heads` equals `n_heads` without grouped-query attention. `weights_hash` is a sha256 over
    parameter names, shapes, dtypes and bytes; `config_hash` one over the configuration's values (rotary base, norm
    epsilon, window, …); `tokenizer_hash` one over the serialised tokenizer. `kept_hooks`: hook points with custom
    hooks that are deliberately part of the model.
    """

    name: str
    source: str
    architecture: str
    n_layers: int
    n_heads: int
    n_key_value_heads: int
    d_head: int
    d_model: int
    d_vocab: int
    n_ctx: int
    dtype: str
    device: str
    bos_policy: BosPolicy
    weights_hash: str
    config_hash: str
    tokenizer_hash: str
    parallel_attn_mlp: bool
    kept_hooks: tuple[str, ...] = ()

    @property
    def heads_per_group(self) -> int:
        """Query heads that share one key/value head."""
        return self.n_heads // self.n_key_value_heads


@runtime_checkable
class HookedModel(Protocol):
    """A causal language model with TransformerLens hook points.

    Hook names follow TransformerLens: ``blocks.{l}.hook_resid_pre``, ``blocks.{l}.hook_resid_post``,
    ``blocks.{l}.hook_attn_out``, ``blocks.{l}.hook_mlp_out``, ``blocks.{l}.attn.hook_z`` [batch, pos, head, d_head]
    and ``blocks.{l}.attn.hook_pattern`` [batch, head, query_pos, key_pos].
    """

    @property
    def facts(self) -> ModelFacts:
        """Shape and provenance."""
        ...

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's original tokenizer."""
        ...

    @property
    def module(self) -> torch.nn.Module:
        """The TransformerBridge or HookedTransformer itself."""
        ...

    def forward(
        self,
        input_ids: Int[torch.Tensor, "batch pos"],
        attention_mask: Int[torch.Tensor, "batch all_pos"],
        position_ids: Int[torch.Tensor, "batch pos"],
        *,
        cache: Any | None = None,
        logits_to_keep: int = 0,
    ) -> Float[torch.Tensor, "batch kept d_vocab"]:
        """Run the model on left-padded rows and return logits. Inputs may be on another device than the model.

        Args:
            input_ids: new tokens; padding is on the left.
            attention_mask: 1 for real tokens, over cached and new positions together.
            position_ids: position of each new token in its row, counted from the row's first real token.
            cache: from `new_cache`, updated in place; ``None`` runs without a cache.
            logits_to_keep: number of last positions whose logits are kept (0 keeps all).
        """
        ...

    def new_cache(self) -> Any:
        """An empty key/value cache for `forward`."""
        ...

    def hooks(self, fwd_hooks: Sequence[NamedHook]) -> AbstractContextManager[Any]:
        """Context manager in which `fwd_hooks` are part of every forward pass."""
        ...

    def hook_names(self) -> frozenset[str]:
        """Every hook name that `hooks` accepts, aliases included."""
        ...


if TYPE_CHECKING:
    AnyModel: TypeAlias = HookedModel | torch.nn.Module
    """A loaded model: a TransformerBridge, a HookedTransformer, or the adapter of one."""
    ModelOrName: TypeAlias = str | Path | AnyModel
    """A loaded model, or a name or path for `load_model`."""
else:  # Types alone don't import torch.
    AnyModel = ModelOrName = Any
