"""Whether the network may be used."""

from __future__ import annotations

import os

from lensprune.errors import UserError

__all__ = ["is_offline", "is_true"]

_TRUE = ("1", "true", "t", "yes", "y", "on")
_FALSE = ("", "0", "false", "f", "no", "n", "off")


def is_true(text: str, where: str) -> bool:
    """Parse one of the usual words for true and false, in any case; an empty text is false.

    Args:
        where: names the setting in the error.

    Raises:
        UserError: any other word.
    """
    word = text.strip().lower()
    if word not in _TRUE + _FALSE:
        raise UserError(f"{where} is {text!r}: expected 1, true, yes or on, or 0, false, no or off")
    return word in _TRUE


def is_offline(*, hub_counts: bool = True) -> bool:
    """Whether ``LENSPRUNE_OFFLINE`` or Hugging Face's ``HF_HUB_OFFLINE`` forbids every network access.

    Args:
        hub_counts: whether ``HF_HUB_OFFLINE`` counts; false where Hugging Face's library handles it and reads its
            cache.

    Raises:
        UserError: ``LENSPRUNE_OFFLINE`` is neither true nor false.
    """
    ours = is_true(os.environ.get("LENSPRUNE_OFFLINE", ""), "LENSPRUNE_OFFLINE")
    # Parsed as huggingface_hub does: another library's variable is not ours to reject.
    return ours or (hub_counts and os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"))
