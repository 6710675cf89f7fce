"""When a generated row ends, and what its text is: lm-eval's rules, one token at a time."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from transformers import PreTrainedTokenizerBase

from lensprune.protocols.requests import GenerateRequest, GenerateResponse, StopReason, Thinking
from lensprune.protocols.stop_strings import StopStrings, with_eos_string

__all__ = ["StopMatcher", "cut_at_stops", "generated_text", "read_generation"]


def cut_at_stops(text: str, stops: Sequence[str]) -> str:
    """Cut `text` before the first occurrence of each stop string, applied in the order given."""
    for stop in stops:
        text = text.split(stop, maxsplit=1)[0]
    return text


def read_generation(
    tokenizer: PreTrainedTokenizerBase, request: GenerateRequest, ids: Sequence[int], reason: StopReason
) -> GenerateResponse:
    """Make the response for the new tokens `ids` of `request`, as lm-eval 0.4.13 reads them.

    With thinking, the answer is what follows the last end marker, without leading white space (lm-eval's
    ``think_end_token``), and is cut at the first stop string after it. If thinking began and never ended, there is no
    answer; lm-eval would take the thinking as the answer.
    """
    if request.thinking is None:
        return GenerateResponse(generated_text(tokenizer, request, ids), tuple(ids), reason)
    stops, ids = with_eos_string(tokenizer, request.until), list(ids)
    thought, answer, ended = _parted(request.thinking, ids)
    if not ended and reason == "eos":
        thought = thought[:-1]
    return GenerateResponse(
        text=cut_at_stops(_text(tokenizer, answer).lstrip(), stops),
        token_ids=tuple(ids),
        stop_reason=reason,
        thinking=_text(tokenizer, thought),
        n_thinking_tokens=len(thought),
        thinking_ended=ended,
    )


def generated_text(tokenizer: PreTrainedTokenizerBase, request: GenerateRequest, token_ids: Sequence[int]) -> str:
    """Decode `token_ids` as an answer to `request`: without special tokens, cut before a stop string.

    Forced tokens, and those before them, are never cut.
    """
    end, ids = request.forced_end, list(token_ids)
    place = None if end is None else end.forced_at(ids)
    begin = 0 if end is None or place is None else place + len(end.forced_ids)
    kept, rest = _split(tokenizer, ids, begin, skip_special_tokens=True)
    return kept + cut_at_stops(rest, with_eos_string(tokenizer, request.until))


def _split(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], begin: int, *, skip_special_tokens: bool
) -> tuple[str, str]:
    """The text of the first `begin` of `ids`, and the text of the rest."""
    whole = str(tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))
    if begin <= 0:
        return "", whole
    # The rest is not decoded separately: some decoders drop a leading space.
    head = str(tokenizer.decode(list(ids[:begin]), skip_special_tokens=skip_special_tokens))
    return head, whole[len(head) :]


def _text(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True))


def _parted(thinking: Thinking, ids: list[int]) -> tuple[list[int], list[int], bool]:
    """Thinking without its markers, answer, and whether thinking has ended (or never begun)."""
    start, end = list(thinking.start_ids), list(thinking.end_ids)
    after = next((i for i in range(len(ids), len(end) - 1, -1) if ids[i - len(end) : i] == end), None)
    thought = ids if after is None else ids[: after - len(end)]
    joint = list(thinking.joint_ids)
    if joint and after is not None and thought[-len(joint) :] == joint:
        thought = thought[: -len(joint)]
    begun = next((i for i in range(len(thought) - len(start) + 1) if thought[i : i + len(start)] == start), None)
    if after is None and begun is None and not thinking.opened:
        return [], ids, True
    if begun is not None:
        thought = thought[:begun] + thought[begun + len(start) :]
    return thought, [] if after is None else ids[after:], after is not None


class StopMatcher:
    """Tracks one generated row and decides when it is finished.

    A row ends with a token of `eos_ids`, or as soon as a stop string occurs in the decoded text, however it is split
    into tokens. Only new tokens are searched, never the prompt. The text equals what lm-eval 0.4.13 returns for the
    same tokens when it generates the row alone (batch size 1): special tokens are left out, the text is cut at the
    first stop string, and the tokenizer's EOS is one of the stop strings.

    With `thinking`, stop strings end only the answer: they are searched for outside the markers, from the first
    character that is not white space. lm-eval also ends a row at a stop string within its thinking, such as a blank
    line, and then has no answer.

    Args:
        stops: stop strings, and the model's original tokenizer.
        eos_ids: ids that end a row (the generation config's and the tokenizer's).
        thinking: where the thinking is; ``None`` without thinking.
    """

    def __init__(self, stops: StopStrings, eos_ids: Collection[int], thinking: Thinking | None = None) -> None:
        self._tokenizer, self._stops = stops.tokenizer, stops
        self._request = GenerateRequest((), stops.until, 0, thinking=thinking)
        self._eos_ids = frozenset(eos_ids)
        self._ids: list[int] = []
        # No stop string starts before this token.
        self._begin = 0
        # A token has at least one byte, so a stop string ending in the last token starts within this many tokens.
        # The margin keeps it clear of the window's first token, whose leading space some decoders drop.
        self._window = 4 + stops.longest
        self._thinks = thinking is not None and thinking.opened
        # Whether the answer has a character other than white space yet.
        self._begun = thinking is None

    def push(self, token_id: int) -> StopReason | None:
        """Add the row's next token.

        Returns:
            ``"eos"`` or ``"stop_string"`` if the row ends with this token, else ``None``.
        """
        token_id = int(token_id)
        self._ids.append(token_id)
        if token_id in self._eos_ids:
            return "eos"
        if self._is_thinking() or (self._begun and not self._stops.may_end_with(token_id)):
            return None
        # Special tokens are kept here: a stop string may be the spelling of one (``<|im_end|>``).
        if self._request.thinking is not None:
            return "stop_string" if self._stops_after_thinking() else None
        start = max(0, len(self._ids) - self._window)
        _, tail = _split(self._tokenizer, self._ids[start:], self._begin - start, skip_special_tokens=False)
        return "stop_string" if self._stops.in_text(tail) else None

    def _stops_after_thinking(self) -> bool:
        """Whether the answer contains a stop string, ignoring leading white space."""
        first = max(self._begin, len(self._ids) - self._window)
        tail = str(self._tokenizer.decode(self._ids[first:], skip_special_tokens=False))
        if first == self._begin:
            tail = tail.lstrip()
        if not self._begun:
            self._begun = bool(tail)
            self._begin = len(self._ids) - self._begun
        return self._stops.in_text(tail)

    def force(self, token_id: int) -> None:
        """Add a token that doesn't end the row, neither by itself nor as part of a stop string."""
        self._ids.append(token_id)
        if not self._is_thinking():
            self._begin = len(self._ids)

    def ends_in(self, token_ids: Sequence[int]) -> bool:
        """Whether these are the newest tokens."""
        return self._ids[-len(token_ids) :] == list(token_ids)

    def _is_thinking(self) -> bool:
        """Whether the last token belongs to the thinking or to a marker."""
        thinking = self._request.thinking
        if thinking is None:
            return False
        if self.ends_in(thinking.end_ids):
            self._thinks, self._begin, self._begun = False, len(self._ids), False
            return True
        self._thinks |= self.ends_in(thinking.start_ids)
        return self._thinks

    @property
    def last(self) -> int:
        """The newest token."""
        return self._ids[-1]

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def token_ids(self) -> tuple[int, ...]:
        """All tokens so far, including those of the stop string and EOS."""
        return tuple(self._ids)

    def response(self, reason: StopReason) -> GenerateResponse:
        """The response for a row that ended for `reason`; see `read_generation`."""
        if self._request.thinking is not None:
            return read_generation(self._tokenizer, self._request, self._ids, reason)
        kept, rest = _split(self._tokenizer, self._ids, self._begin, skip_special_tokens=True)
        return GenerateResponse(kept + cut_at_stops(rest, self._stops.strings), self.token_ids, reason)

    def text(self) -> str:
        """The answer so far, without special tokens and cut before the first stop string."""
        return self.response("length").text
