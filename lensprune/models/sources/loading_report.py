"""Check transformers' loading report: it fills in, drops and unties weights without an error."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from lensprune.errors import UserError

__all__ = ["MAY_DIFFER", "check_loading", "quiet_report"]

MAY_DIFFER = (
    # Angles and causal masks that old checkpoints hold, and that are computed from the configuration.
    r"(^|\.)rotary_emb\.inv_freq$",
    r"(^|\.)(attn|attention|self_attention)\.(masked_)?bias$",
)
"""Names that a file may lack, or contain in addition. A tied unembedding may be absent too: transformers does not
report that as missing."""

_SHOWN = 3


def check_loading(model: PreTrainedModel, info: Mapping[str, Any], name: str, *, text_part: bool = False) -> None:
    """Refuse weights that are not all from the file, or a file with more weights than the model uses.

    Args:
        model: the loaded model.
        info: transformers' loading info.
        name: name of the checkpoint, for the message.
        text_part: whether the file contains other parts too (a vision tower), whose names are ignored.

    Raises:
        UserError: missing, mismatched or unexpected tensors, or a separate unembedding although the configuration ties
            it to the embedding.
    """
    missing = _listed(info["missing_keys"])
    if missing:
        raise UserError(
            f"model {name!r} lacks {_count(missing)} that {type(model).__name__} computes with: {_shown(missing)}; "
            "transformers would fill them with random numbers"
        )
    mismatched = sorted((key, list(stored), list(in_model)) for key, stored, in_model in info["mismatched_keys"])
    if mismatched:
        shown = [f"{key} {stored} instead of {in_model}" for key, stored, in_model in mismatched]
        raise UserError(f"model {name!r} has {_count(shown)} of another shape than its configuration: {_shown(shown)}")
    unexpected = _listed(info["unexpected_keys"])
    if text_part:
        in_model = tuple(f"{child}." for child in _parts(model))
        unexpected = [key for key in unexpected if key.startswith(in_model)]
    if unexpected:
        raise UserError(
            f"model {name!r} holds {_count(unexpected)} that {type(model).__name__} has no place for: "
            f"{_shown(unexpected)}; its configuration does not fit its weights"
        )
    for error in info.get("error_msgs") or ():
        raise UserError(f"model {name!r} cannot be loaded: {error}")
    _check_tie(model, name)


def _check_tie(model: PreTrainedModel, name: str) -> None:
    if not getattr(model.config, "tie_word_embeddings", False):
        return
    head, embedding = (
        getattr(m, "weight", None) for m in (model.get_output_embeddings(), model.get_input_embeddings())
    )
    if head is None or embedding is None or head is embedding:
        return
    if not torch.equal(head, embedding):
        raise UserError(
            f"model {name!r} states tie_word_embeddings, but its file holds an output head that differs from the "
            "embedding: set tie_word_embeddings to false in config.json to compute with that head, or leave the head "
            "out of the file to compute with the embedding"
        )


def _parts(model: PreTrainedModel) -> Iterator[str]:
    prefix = model.base_model_prefix
    for child, _ in model.named_children():
        if child == prefix:
            yield from (f"{prefix}.{inner}" for inner, _ in model.base_model.named_children())
        else:
            yield child


def _listed(keys: Iterable[str]) -> list[str]:
    return sorted(key for key in keys if not any(re.search(pattern, key) for pattern in MAY_DIFFER))


def _count(names: list[str]) -> str:
    return "1 tensor" if len(names) == 1 else f"{len(names)} tensors"


def _shown(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")


@contextmanager
def quiet_report() -> Iterator[None]:
    """Silence transformers' table of mismatches and its warning about an untied unembedding, which are errors here."""

    def other(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        return "LOAD REPORT" not in text and "NOT tie them" not in text and "seem corrupted" not in text

    loggers = [logging.getLogger(f"transformers.{name}") for name in ("modeling_utils", "utils.loading_report")]
    for logger in loggers:
        logger.addFilter(other)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(other)
