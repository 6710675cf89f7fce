"""Refuse an architecture that TransformerLens has no adapter for, before any weight is read."""

from __future__ import annotations

from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES
from transformers import PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from lensprune.errors import UserError, nearest

__all__ = ["check_architecture"]


def check_architecture(config: PretrainedConfig, name: str) -> None:
    """Raise `UserError` unless `config` is a causal language model that TransformerLens can wrap."""
    architecture = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    if architecture is None:
        stated = (getattr(config, "architectures", None) or [config.model_type])[0]
        raise UserError(f"architecture {stated} of {name!r} is not supported: it is not a causal language model")
    if architecture not in SUPPORTED_ARCHITECTURES:
        close = nearest(architecture, SUPPORTED_ARCHITECTURES)
        hint = f" (nearest that has one: {', '.join(close)})" if close else ""
        raise UserError(
            f"architecture {architecture} of {name!r} is not supported: TransformerLens has no adapter for it, so all "
            f"its hook points are missing{hint}"
        )
