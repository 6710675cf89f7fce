"""When a generated row ends, and which text it leaves: lm-eval's rules, one token at a time."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from transformers import PreTrainedTokenizerBase

from lensprune.errors import UserError
from lensprune.protocols.requests import GenerateRequest, StopReason

__all__ = ["StopMatcher", "cut_at_stops", "generated_text", "with_eos_string"]


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


def generated_text(tokenizer: PreTrainedTokenizerBase, request: GenerateRequest, token_ids: Sequence[int]) -> str:
    """The text that `token_ids` leave as an answer to `request`: without special tokens, cut before a stop string.

    Tokens that were forced, and those before them, are never cut.
    """
    end, ids = request.forced_end, list(token_ids)
    place = None if end is None else end.forced_at(ids)
    begin = 0 if end is None or place is None else place + len(end.forced_ids)
    kept, rest = _split(tokenizer, ids, begin, skip_special_tokens=True)
    return kept + cut_at_stops(rest, with_eos_string(tokenizer, request.until))


def _split(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], begin: int, *, skip_special_tokens: bool
) -> tuple[str, str]:
    """The text of the first `begin` of `ids`, and that of the others."""
    whole = str(tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))
    if begin <= 0:
        return "", whole
    # The others are not decoded by themselves: some decoders drop a space in front.
    head = str(tokenizer.decode(list(ids[:begin]), skip_special_tokens=skip_special_tokens))
    return head, whole[len(head) :]


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
        # No stop string begins before this token.
        self._begin = 0
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
        start = max(0, len(self._ids) - self._window)
        _, tail = _split(self._tokenizer, self._ids[start:], self._begin - start, skip_special_tokens=False)
        return "stop_string" if any(stop in tail for stop in self._stops) else None

    def force(self, token_id: int) -> None:
        """Add a token that ends nothing, neither by itself nor as part of a stop string."""
        self._ids.append(token_id)
        self._begin = len(self._ids)

    def ends_in(self, token_ids: Sequence[int]) -> bool:
        """Whether these are the newest tokens."""
        return self._ids[-len(token_ids) :] == list(token_ids)

    @property
    def last(self) -> int:
        """The newest token."""
        return self._ids[-1]

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def token_ids(self) -> tuple[int, ...]:
        """All tokens so far, those of the stop string and EOS included."""
        return tuple(self._ids)

    def text(self) -> str:
        """The row's text so far, without special tokens and cut before the first stop string."""
        kept, rest = _split(self._tokenizer, self._ids, self._begin, skip_special_tokens=True)
        return kept + cut_at_stops(rest, self._stops)
