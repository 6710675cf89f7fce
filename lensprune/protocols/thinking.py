"""Thinking before an answer: the tokens that mark it."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from lensprune.errors import UserError, nearest
from lensprune.protocols.requests import ForcedEnd, Thinking

__all__ = ["KNOWN_MARKERS", "ThinkingMarkers", "markers_of"]

KNOWN_MARKERS: tuple[tuple[str, str, str], ...] = (
    ("<think>", "</think>", ""),
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>", "<|end|><|start|>assistant"),
    ("[THINK]", "[/THINK]", ""),
    ("<|START_THINKING|>", "<|END_THINKING|>", ""),
    ("<seed:think>", "</seed:think>", ""),
)
"""Start and end markers of thinking, and the text inserted before a forced end: Qwen3 and DeepSeek-R1, gpt-oss,
Magistral, Command A and Seed-OSS."""


@dataclass(frozen=True)
class ThinkingMarkers:
    """The texts that mark thinking, and their token ids; `forced_ids` are inserted when a budget forces an end."""

    start: str
    end: str
    start_ids: tuple[int, ...]
    end_ids: tuple[int, ...]
    forced_ids: tuple[int, ...]

    def opened_by(self, context: str) -> bool:
        """Whether the answer to the prompt `context` begins inside thinking."""
        return context.rstrip().endswith(self.start)

    def in_answer_to(self, context: str) -> Thinking:
        """The `Thinking` of a request with the prompt `context`."""
        joint = self.forced_ids[: -len(self.end_ids)]
        return Thinking(self.start_ids, self.end_ids, joint, self.opened_by(context))

    def forced_after(self, budget: int) -> ForcedEnd:
        """The forced end of thinking after `budget` tokens."""
        return ForcedEnd(budget, self.end_ids, self.forced_ids)


def markers_of(
    tokenizer: PreTrainedTokenizerBase, model_name: str, given: tuple[str, str] | None = None
) -> ThinkingMarkers | None:
    """The `given` markers, or the first of `KNOWN_MARKERS` that the tokenizer has; ``None`` if it has none of these.

    Raises:
        UserError: a given marker does not consist of the tokenizer's added tokens, or both are the same.
    """
    if given is None:
        known = (_markers(tokenizer, *row) for row in KNOWN_MARKERS)
        return next((markers for markers in known if markers is not None), None)
    if given[0] == given[1]:
        raise UserError(f"think tokens {given[0]!r} and {given[1]!r} are the same: give the start and the end")
    for text in given:
        if _marker_ids(tokenizer, text) is None:
            raise _not_a_token(tokenizer, model_name, text)
    before = next((row[2] for row in KNOWN_MARKERS if row[:2] == tuple(given)), "")
    return _markers(tokenizer, *given, before)


def _markers(tokenizer: PreTrainedTokenizerBase, start: str, end: str, before_forced: str) -> ThinkingMarkers | None:
    start_ids, end_ids = _marker_ids(tokenizer, start), _marker_ids(tokenizer, end)
    if start_ids is None or end_ids is None:
        return None
    forced = tuple(tokenizer.encode(before_forced, add_special_tokens=False)) if before_forced else ()
    return ThinkingMarkers(start, end, start_ids, end_ids, (*forced, *end_ids))


def _marker_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...] | None:
    """The ids of `text` if it is one token, or begins and ends with added tokens; else ``None``, since it could be
    tokenized differently next to other text."""
    ids = tuple(tokenizer.encode(text, add_special_tokens=False)) if text else ()
    if not ids or tokenizer.unk_token_id in ids:
        return None
    if len(ids) == 1 and str(tokenizer.decode(list(ids), skip_special_tokens=False)).strip() == text:
        return ids
    added = tokenizer.added_tokens_decoder
    return ids if len(ids) > 1 and ids[0] in added and ids[-1] in added else None


def _not_a_token(tokenizer: PreTrainedTokenizerBase, model_name: str, text: str) -> UserError:
    added = sorted({str(token) for token in tokenizer.added_tokens_decoder.values()})
    close = nearest(text, added)
    hint = f"did you mean {' or '.join(close)}?" if close else f"its added tokens are {', '.join(added[:20]) or 'none'}"
    return UserError(f"think token {text!r} is not a token of {model_name}: {hint}")
