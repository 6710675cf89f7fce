"""Refuse an architecture that TransformerLens has no adapter for, before any weight is read."""

from __future__ import annotations

from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES
from transformers import PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from lensprune.errors import UserError, nearest

__all__ = ["TEXT_PART_KEYS", "check_architecture", "text_config"]

TEXT_PART_KEYS = {
    r"^(model\.)?language_model\.lm_head\.": "lm_head.",
    r"^(model\.)?language_model\.(model\.)?": "model.",
}
"""Maps parameter names of a multimodal checkpoint's language model to those of its text class."""


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


def text_config(config: PretrainedConfig, name: str) -> PretrainedConfig:
    """The configuration of the language model: `config` itself, or its text part if it is multimodal.

    Raises:
        UserError: there is no causal language model in it that TransformerLens can wrap.
    """
    text = config.get_text_config(decoder=True)
    if text is config or config.is_encoder_decoder:
        check_architecture(config, name)
        return config
    stated = (getattr(config, "architectures", None) or [config.model_type])[0]
    if MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(text.model_type) is None:
        raise UserError(
            f"architecture {stated} of {name!r} is not supported: it is multimodal, and transformers has no class for "
            f"its text part ({text.model_type}) alone"
        )
    check_architecture(text, f"{name} (the text part of {stated})")
    # The whole model's word counts: some text parts state the opposite, which is never read.
    text.tie_word_embeddings = config.tie_word_embeddings
    return text
