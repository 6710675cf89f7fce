"""When a generated row ends, and which text it leaves: lm-eval's rules, one token at a time."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from transformers import PreTrainedTokenizerBase

from lensprune.errors import UserError
from lensprune.protocols.requests import StopReason

__all__ = ["StopMatcher", "cut_at_stops", "with_eos_string"]


def with_eos_string(tokenizer: PreTrainedTokenizerBase, until: Sequence[str]) -> tuple[str, ...]:
    """Append the tokenizer's EOS in letters to the stop strings, as lm-eval's ``handle_stop_sequences`` does."""
    eos_id = tokenizer.eos_token_id
    if not isinstance(eos_id, int):
        return tuple(until)
    eos = str(tokenizer.decode([eos_id], skip_special_tokens=False))
    return tuple(until) if not eos or eos in until else (*until, eos)


def cut_at_stops(text: str, stops: Sequence[str]) -> str:
    """Keep what stands before the first occurrence of each stop string, one after the other in the order given."""
    for stop in stops:
        text = text.split(stop, maxsplit=1)[0]
    return text


class StopMatcher:
    """Follows one generated row and says when it is finished.

    A row ends with a token of `eos_ids`, or as soon as a stop string can be read in the decoded text, wherever its
    letters lie between tokens. Only the new tokens are looked at, never the prompt. The text equals what lm-eval
    0.4.13 returns for the same tokens when it generates the row by itself (batch size 1): special tokens left
    out, cut at the first stop string, the tokenizer's own EOS counted among the stop strings.

    Args:
        tokenizer: the model's original tokenizer.
        until: stop strings, in lm-eval's order.
        eos_ids: ids that end a row (the generation config's, and the tokenizer's).

    Raises:
        UserError: a stop string is empty; it would end every row after one token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, until: Sequence[str], eos_ids: Collection[int]) -> None:
        if any(not stop for stop in until):
            raise UserError("a stop string is empty: give at least one character, or leave it out")
        self._tokenizer = tokenizer
        self._stops = with_eos_string(tokenizer, until)
        self._eos_ids = frozenset(eos_ids)
        self._ids: list[int] = []
        # A token spells at least one byte, so a stop string ending in the last token starts within this many tokens.
        # The margin keeps it clear of the window's first token, whose leading space some decoders drop.
        self._window = 4 + max((len(stop.encode()) for stop in self._stops), default=0)

    def push(self, token_id: int) -> StopReason | None:
        """Add the row's next token.

        Returns:
            ``"eos"`` or ``"stop_string"`` if the row ends with this token, else ``None``.
        """
        token_id = int(token_id)
        self._ids.append(token_id)
        if token_id in self._eos_ids:
            return "eos"
        if not self._stops:
            return None
        # Special tokens are kept here: a stop string may be the spelling of one (``<|im_end|>``).
        tail = str(self._tokenizer.decode(self._ids[-self._window :], skip_special_tokens=False))
        return "stop_string" if any(stop in tail for stop in self._stops) else None

    @property
    def token_ids(self) -> tuple[int, ...]:
        """All tokens so far, those of the stop string and EOS included."""
        return tuple(self._ids)

    def text(self) -> str:
        """The row's text so far, without special tokens and cut before the first stop string."""
        return cut_at_stops(str(self._tokenizer.decode(self._ids, skip_special_tokens=True)), self._stops)
