"""Map characters of a prompt to the positions of its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from lensprune.errors import UserError
from lensprune.models.base import HookedModel
from lensprune.models.tokenizers import encode

__all__ = ["EncodedText", "encode_with_spans", "text_of_tokens"]

_INCOMPLETE = "\ufffd"
"""How a tokenizer decodes some of the bytes of a character."""


@dataclass(frozen=True)
class EncodedText:
    """Token ids of a text, and for each its characters (an empty range for special tokens at the start)."""

    ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]

    def positions(self, start: int, stop: int) -> list[int]:
        """Positions of the tokens that cover any of the characters `start` to `stop` (exclusive)."""
        return [i for i, (a, b) in enumerate(self.spans) if a < stop and b > start and a < b]


def text_of_tokens(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
    """The text of some tokens, special tokens included, and the characters of each.

    Tokens that hold a character only together have the same range. The text's first space is missing where the
    tokenizer leaves it out.
    """

    def decode(first: int, stop: int) -> str:
        given = list(ids[first:stop])
        return str(tokenizer.decode(given, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    text, spans = "", list[tuple[int, int]]()
    # Decoded after the tokens of the character before: the first token may lose a leading space.
    before = begin = 0
    for stop in range(1, len(ids) + 1):
        known, more = decode(before, begin), decode(before, stop)
        if stop < len(ids) and (more.endswith(_INCOMPLETE) or len(more) < len(known)):
            continue
        piece = more[len(known) :]
        spans += [(len(text), len(text) + len(piece))] * (stop - begin)
        text += piece
        before, begin = begin, stop
    return text, spans


def encode_with_spans(model: HookedModel, text: str) -> EncodedText:
    """`encode` of a text, with each token's characters.

    Raises:
        UserError: the tokenizer can't say which characters a token covers.
    """
    if not model.tokenizer.is_fast:
        raise UserError(
            f"the tokenizer of {model.facts.name} does not report its tokens' positions in the text: a fast tokenizer "
            f"is needed"
        )
    bare = model.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = encode(model, text)
    front = len(ids) - len(bare["input_ids"])
    if front < 0 or ids[front:] != list(bare["input_ids"]):
        raise UserError(f"the tokenizer of {model.facts.name} adds tokens in places other than the start of a prompt")
    return EncodedText(tuple(ids), ((0, 0),) * front + tuple((a, b) for a, b in bare["offset_mapping"]))
