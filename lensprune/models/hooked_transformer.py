"""A HookedTransformer of TransformerLens 3.x as a `HookedModel`; TransformerLens 4.0 removed the class."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeGuard

import torch
import transformer_lens
from jaxtyping import Float, Int
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lensprune.errors import LensPruneError, UserError
from lensprune.models.base import BosPolicy, ModelFacts, NamedHook
from lensprune.models.boot import ADAPTER_ATTRIBUTE, tokenizer_for_boot
from lensprune.models.current import remember_weights
from lensprune.models.facts import Origin, context_length, hash_weights, model_facts
from lensprune.models.self_check import check_hook_points
from lensprune.models.sources.base import LoadedModel
from lensprune.models.tokenizers import check_bos_policy
from lensprune.offline import is_offline

try:
    from transformer_lens import HookedTransformer
except ImportError:
    HookedTransformer = None

__all__ = [
    "HookedTransformerModel",
    "adapt_hooked_transformer",
    "boot_hooked_transformer",
    "is_hooked_transformer",
    "require_hooked_transformer",
]

_MAX_CONTEXT = 2048
"""Each layer keeps a mask of context² entries, so longer contexts are cut to TransformerLens's choice for large
models."""

_PROBE_LENGTH = 48
_PROBE_TOLERANCE = 1e-3


class _Cache:
    """TransformerLens's key/value cache, made when the first rows show the batch size."""

    def __init__(self) -> None:
        self.inner: Any = None


class HookedTransformerModel:
    """Adapter around a HookedTransformer."""

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, facts: ModelFacts) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._facts = facts
        self._hook_names = frozenset(model.hook_dict)

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
        """The HookedTransformer itself."""
        return self._model

    no_raw_model = "a HookedTransformer holds its own copy of the weights: load the model as a TransformerBridge"

    @property
    def raw_model(self) -> None:
        """Always ``None``: a HookedTransformer holds its own copy of the weights."""
        return None

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

        Raises:
            LensPruneError: `position_ids` do not count real tokens, which is all that HookedTransformer supports.
        """
        input_ids, attention_mask, position_ids = (
            t.to(self.facts.device) for t in (input_ids, attention_mask, position_ids)
        )
        new = input_ids.shape[1]
        implied = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)[:, -new:]
        real = attention_mask[:, -new:].bool()
        if not torch.equal(implied[real], position_ids.expand_as(implied)[real]):
            raise LensPruneError("a HookedTransformer can only count positions from each row's first real token")
        inner = None
        if cache is not None:
            if cache.inner is None:
                cache.inner = transformer_lens.TransformerLensKeyValueCache.init_cache(
                    self._model.cfg, self._model.cfg.device, input_ids.shape[0]
                )
            inner = cache.inner
        logits = self._model(
            input_ids, return_type="logits", attention_mask=attention_mask[:, -new:], past_kv_cache=inner
        )
        return logits[:, -logits_to_keep:] if logits_to_keep else logits

    def new_cache(self) -> _Cache:
        """An empty key/value cache for `forward`."""
        return _Cache()

    def hooks(self, fwd_hooks: Sequence[NamedHook]) -> AbstractContextManager[Any]:
        """Context manager in which `fwd_hooks` are part of every forward pass."""
        return self._model.hooks(fwd_hooks=list(fwd_hooks))

    def hook_names(self) -> frozenset[str]:
        """Every hook name that `hooks` accepts."""
        return self._hook_names


def require_hooked_transformer() -> None:
    """Raise `UserError` if the installed TransformerLens has no HookedTransformer."""
    if HookedTransformer is None:
        raise UserError(
            "hooked_transformer=True is not possible: TransformerLens 4.0 removed HookedTransformer; leave the flag "
            "out (the TransformerBridge has the same hook names), or install 'transformer-lens>=3.9,<4'"
        )


def is_hooked_transformer(model: object) -> TypeGuard[torch.nn.Module]:
    """Whether `model` is a HookedTransformer; always false with TransformerLens 4."""
    return HookedTransformer is not None and isinstance(model, HookedTransformer)


def boot_hooked_transformer(loaded: LoadedModel, *, name: str, bos: BosPolicy, self_check: bool) -> Any:
    """Convert a Hugging Face model to an unprocessed HookedTransformer that carries its adapter.

    Raises:
        UserError: TransformerLens cannot convert the architecture.
        LensPruneError: the converted model's logits are not the Hugging Face model's, or the self-check failed.
    """
    require_hooked_transformer()
    check_bos_policy(bos, loaded.tokenizer)
    hf_model, tokenizer = loaded.hf_model, tokenizer_for_boot(loaded.tokenizer)
    n_ctx = min(context_length(hf_model.config, loaded.tokenizer), _MAX_CONTEXT)
    hf_model.config.architectures = [type(hf_model).__name__]
    # A folder's name must not matter: TransformerLens would take a folder called gpt2 for the model of that name.
    if loaded.source.startswith("hub:") and name in transformer_lens.loading.OFFICIAL_MODEL_NAMES:
        parameter = next(hf_model.parameters())
        model = HookedTransformer.from_pretrained_no_processing(
            name,
            hf_model=hf_model,
            tokenizer=tokenizer,
            device=str(parameter.device),
            dtype=parameter.dtype,
            n_ctx=n_ctx,
            local_files_only=is_offline(),
        )
    else:
        model = _convert(hf_model, tokenizer, n_ctx)
    facts = _facts(
        model,
        loaded.tokenizer,
        name=name,
        source=loaded.source,
        architecture=type(hf_model).__name__,
        bos=bos,
        weights_hash=loaded.weights_hash or hash_weights(hf_model.state_dict()),
    )
    adapter = HookedTransformerModel(model.eval(), loaded.tokenizer, facts)
    _check_same_logits(adapter, hf_model)
    check_hook_points(adapter, intervene=self_check)
    model.__dict__[ADAPTER_ATTRIBUTE] = adapter
    remember_weights(model, adapter.facts.weights_hash)
    return model


def adapt_hooked_transformer(model: Any, tokenizer: PreTrainedTokenizerBase, bos: BosPolicy) -> HookedTransformerModel:
    """Wrap a HookedTransformer that the user loaded; processed weights (folded norms) are taken as they are."""
    check_bos_policy(bos, tokenizer)
    facts = _facts(
        model,
        tokenizer,
        name=str(model.cfg.model_name),
        source="user",
        architecture=str(model.cfg.original_architecture),
        bos=bos,
        weights_hash=hash_weights(model.state_dict()),
    )
    adapter = HookedTransformerModel(model, tokenizer, facts)
    check_hook_points(adapter)
    model.__dict__[ADAPTER_ATTRIBUTE] = adapter
    remember_weights(model, adapter.facts.weights_hash)
    return adapter


def _facts(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    *,
    name: str,
    source: str,
    architecture: str,
    bos: BosPolicy,
    weights_hash: str,
) -> ModelFacts:
    return model_facts(
        Origin(name, source, architecture, weights_hash),
        model.cfg,
        None,
        tokenizer,
        dtype=model.cfg.dtype,
        device=str(model.cfg.device),
        bos=bos,
    )


def _convert(hf_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, n_ctx: int) -> Any:
    """HookedTransformer.from_pretrained_no_processing for a model without a name on the hub.

    TransformerLens reads the configuration of such a model from a folder, and guesses by the folder's name first, so
    the folder gets a neutral one.
    """
    loading = transformer_lens.loading
    architecture = type(hf_model).__name__
    parameter = next(hf_model.parameters())
    with tempfile.TemporaryDirectory(prefix="hooked-") as folder:
        config = hf_model.config.to_dict()
        # GPT-2's configuration lost this name of its context length, which TransformerLens still reads.
        config.setdefault("n_ctx", context_length(hf_model.config, tokenizer))
        (Path(folder) / "config.json").write_text(json.dumps({**config, "dtype": None}, default=str))
        try:
            cfg = loading.get_pretrained_model_config(
                folder, hf_cfg=config, device=str(parameter.device), dtype=parameter.dtype, n_ctx=n_ctx
            )
        # TransformerLens raises the first for an architecture that it has no conversion for, the others for a
        # configuration without a name that it reads.
        except (NotImplementedError, AttributeError, KeyError) as error:
            raise UserError(
                f"architecture {architecture} cannot become a HookedTransformer ({error}): leave hooked_transformer out"
            ) from error
        if cfg.original_architecture != architecture:
            raise UserError(
                f"TransformerLens takes {architecture} for {cfg.original_architecture} in the folder {folder}"
            )
        state = loading.get_pretrained_state_dict(folder, cfg, hf_model, dtype=parameter.dtype)
    model = HookedTransformer(cfg, tokenizer, move_to_device=False)
    model.load_and_process_state_dict(
        state, fold_ln=False, center_writing_weights=False, center_unembed=False, fold_value_biases=False
    )
    model.move_model_modules_to_device()
    return model


def _check_same_logits(model: HookedTransformerModel, hf_model: PreTrainedModel) -> None:
    """Compare logits: the conversion reads a configuration field by field, and a field that it misses silently changes
    numbers."""
    parameter = next(hf_model.parameters())
    if parameter.dtype not in (torch.float32, torch.float64):
        return
    length = min(_PROBE_LENGTH, model.facts.n_ctx)
    ids = (torch.arange(length, device=parameter.device) * 13 + 5).remainder(model.facts.d_vocab)[None]
    with torch.no_grad():
        expected = hf_model(input_ids=ids).logits
        logits = model.forward(ids, torch.ones_like(ids), torch.arange(length, device=parameter.device)[None])
    difference = float((logits - expected).abs().max())
    if not difference <= _PROBE_TOLERANCE * max(1.0, float(expected.abs().max())):
        raise LensPruneError(
            f"{model.facts.name}: the HookedTransformer's logits differ from Hugging Face's by {difference:.2g}, so "
            f"TransformerLens converts {model.facts.architecture} wrongly: leave hooked_transformer out"
        )
