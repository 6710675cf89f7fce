"""The strings that end a generated text, and which tokens can complete one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tokenizers.decoders import Decoder
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lensprune.errors import UserError

__all__ = ["StopStrings", "with_eos_string"]

_OF_TOKENS = {"ByteFallback", "Metaspace", "Replace", "Strip"}
_OF_TEXTS = {"ByteLevel", "Fuse"}
"""Decoders of one token after another, and those that join the tokens' texts. What they append for a token depends on
earlier tokens only where a character is spread over several."""

_UNFINISHED = "\ufffd"
"""What bytes that aren't a whole character are decoded to."""

_BEFORE = "a"


def with_eos_string(tokenizer: PreTrainedTokenizerBase, until: Sequence[str]) -> tuple[str, ...]:
    """Append the tokenizer's EOS string to the stop strings, as lm-eval's ``handle_stop_sequences`` does."""
    eos_id = tokenizer.eos_token_id
    if not isinstance(eos_id, int):
        return tuple(until)
    eos = str(tokenizer.decode([eos_id], skip_special_tokens=False))
    return tuple(until) if not eos or eos in until else (*until, eos)


class StopStrings:
    """Stop strings of texts that a tokenizer decodes, its EOS string among them.

    Args:
        tokenizer: the model's original tokenizer.
        until: stop strings, in lm-eval's order.

    Raises:
        UserError: a stop string is empty; it would end every row after one token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, until: Sequence[str]) -> None:
        if any(not stop for stop in until):
            raise UserError("a stop string is empty: give at least one character, or leave it out")
        self.tokenizer, self.until = tokenizer, tuple(until)
        self.strings = with_eos_string(tokenizer, until)
        self.longest = max((len(stop.encode()) for stop in self.strings), default=0)
        """In bytes."""
        # Bytes that aren't a character alone may be one after others.
        self._before = [] if any(_UNFINISHED in stop for stop in self.strings) else _ids_before(tokenizer)
        self._completing: dict[int, bool] = {}

    def in_text(self, text: str) -> bool:
        """Whether the text holds one of them."""
        return any(stop in text for stop in self.strings)

    def may_end_with(self, token_id: int) -> bool:
        """Whether a text without any of them can hold one as soon as this token follows.

        ``True`` where that isn't certain: for tokens that are parts of characters, and for tokenizers whose decoder
        may change earlier text. Decoding a text anew for each token takes longer than all else that is done per token.
        """
        known = self._completing.get(token_id)
        if known is None:
            known = self._completing[token_id] = self._may_complete(token_id)
        return known

    def _may_complete(self, token_id: int) -> bool:
        text = self._text_of(token_id) if self.strings else ""
        if text is None:
            return True
        # A string that wasn't there before ends within the token's text.
        ends = [text[:n] for n in range(1, len(text) + 1)]
        return any(stop in text or any(stop.endswith(end) for end in ends) for stop in self.strings)

    def _text_of(self, token_id: int) -> str | None:
        """What the token appends to a text; ``None`` if that may depend on the text."""
        if not self._before:
            return None
        text = str(self.tokenizer.decode([*self._before, token_id], skip_special_tokens=False))
        head, _, added = text.partition(_BEFORE)
        return None if head.strip() or not added or _UNFINISHED in added else added


def _ids_before(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens to decode a single token after; none if what a token appends may depend on the text."""
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        return []
    own = type(tokenizer)
    if own.decode is not PreTrainedTokenizerFast.decode or own._decode is not PreTrainedTokenizerFast._decode:
        return []
    decoder = tokenizer.backend_tokenizer.decoder
    if decoder is None or not _is_local(decoder):
        return []
    spaced, before = (tokenizer.encode(text, add_special_tokens=False) for text in (f"{_BEFORE} .", _BEFORE))
    # Some tokenizers remove the space before a full stop.
    kept = str(tokenizer.decode(spaced)).endswith(f"{_BEFORE} .")
    return before if kept and str(tokenizer.decode(before)).strip() == _BEFORE else []


def _is_local(decoder: Decoder) -> bool:
    try:
        described: dict[str, Any] = json.loads(decoder.__getstate__())
    except Exception:
        # Of a decoder that is written in Python; the library has no narrower error.
        return False
    parts = described.get("decoders", [described])
    kinds = [part["type"] for part in parts]
    joined = next((i for i, kind in enumerate(kinds) if kind in _OF_TEXTS), len(kinds))
    # In a text, a replacement may take characters of several tokens, and what is stripped from the end reappear.
    later = [part for part in parts[joined:] if part["type"] == "Replace" or part.get("stop")]
    return set(kinds) <= _OF_TOKENS | _OF_TEXTS and not later
