"""The toys' tokenizer, written by hand: the tasks' phrases, one token per key and number, bytes for the rest."""

from __future__ import annotations

import re

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lensprune.tasks.bundled.words import NOUNS

__all__ = ["CHAT_TEMPLATE", "END_OF_THOUGHT", "PHRASES", "THOUGHT", "make_tokenizer"]

PHRASES: tuple[str, ...] = (
    "Extract the value corresponding to the specified key in the JSON object below.\n\nJSON data:\n",
    '{"',
    '",\n "',
    '"}\n\n',
    '"\n\n',
    " +",
    " -",
    " =",
    " The answer is",
    "\n\n",
    *(f'{word}": "' for word in NOUNS),
)
"""Phrases that the prompts repeat verbatim. A key is one token including the separator before its value, so that it is
the same token in the object and in the question, and directly precedes the value."""

THOUGHT, END_OF_THOUGHT = "<think>", "</think>"
"""The markers around a thought. They are not special tokens: decoded text shows them."""

CHAT_TEMPLATE = """\
{%- for message in messages -%}
    {%- set content = message.content.split("</think>")[-1] if message.role == "assistant" else message.content -%}
    {{- "<" + message.role + ">" + content + "<eos>" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- "<assistant>" -}}
    {%- if enable_thinking is defined and enable_thinking is false -%}
        {{- "<think></think>" -}}
    {%- endif -%}
{%- endif -%}
"""
"""Built as Qwen3's: thoughts of earlier turns are left out, and without thinking the answer follows an empty block."""

_ROLES = ("<system>", "<user>", "<assistant>")
_SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
_INSIDE = "▁"
"""Marks the continuation of a number or a character. It is not in the byte alphabet."""
_ANY_LENGTH = 10**6


def make_tokenizer(*, thinking: bool = False) -> PreTrainedTokenizerFast:
    """Make the toys' tokenizer. Numbers are split into two digits at a time, and later digits use different tokens.

    So the first half of a four-digit value can't be confused with the second half of another. Any text can be encoded,
    byte by byte if necessary, and is decoded exactly. No tokens are added automatically.

    With `thinking`, it has a chat template and, after all other tokens, one for each role and think marker.
    """
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)

    def in_bytes(text: str) -> str:
        return "".join(part for part, _ in byte_level.pre_tokenize_str(text))

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [
        *_SPECIAL,
        *map(in_bytes, PHRASES),
        *(str(number) for number in range(100)),
        *(in_bytes(f" {number}") for number in range(100)),
        *(f"{_INSIDE}{number:02}" for number in range(100)),
        *alphabet,
        *(_INSIDE + byte for byte in alphabet),
    ]
    vocabulary: dict[str, int] = {}
    for token in tokens:
        vocabulary.setdefault(token, len(vocabulary))
    tokenizer = Tokenizer(
        models.WordPiece(
            vocabulary, unk_token="<unk>", continuing_subword_prefix=_INSIDE, max_input_chars_per_word=_ANY_LENGTH
        )
    )
    longest_first = sorted(PHRASES, key=len, reverse=True)
    # Python also escapes blanks and newlines, which the tokenizer's expressions do not know.
    pattern = "|".join(re.sub(r"([.+{}])", r"\\\1", phrase) for phrase in longest_first)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(rf"{pattern}| ?[0-9]+|[\s\S]"), behavior="isolated"), byte_level]
    )
    tokenizer.decoder = decoders.Sequence([decoders.Replace(_INSIDE, ""), decoders.ByteLevel()])
    if thinking:
        tokenizer.add_special_tokens([AddedToken(role, special=True) for role in _ROLES])
        tokenizer.add_tokens([AddedToken(marker, normalized=False) for marker in (THOUGHT, END_OF_THOUGHT)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        model_max_length=512,
        **({"chat_template": CHAT_TEMPLATE} if thinking else {}),
    )
