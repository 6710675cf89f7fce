"""The trio's tokenizer: given phrases, digits two by two, and byte-level BPE for the rest."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

__all__ = ["SPECIAL_TOKENS", "train_tokenizer"]

_PAIR_COUNT = 2000
SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>")


def train_tokenizer(texts: Iterable[str], size: int, phrases: Iterable[str] = ()) -> PreTrainedTokenizerFast:
    """Learn tokens from `texts` and add `phrases`; text of any kind can be encoded, byte by byte where need be.

    No token is added by itself. The same texts in the same order give the same tokenizer.

    Args:
        size: learnt tokens at most, the 256 bytes and the special tokens among them.
        phrases: a token each, wherever they stand.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?[0-9]{1,2}"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=1,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    # Often enough that every digit and pair of digits becomes a token, with and without a space in front.
    numbers = [*(f"{number:02}" for number in range(100)), *map(str, range(10))] * _PAIR_COUNT
    tokenizer.train_from_iterator([*texts, " ".join(numbers), "\n".join(numbers)], trainer)
    tokenizer.add_tokens([AddedToken(phrase, normalized=False) for phrase in phrases])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", model_max_length=512
    )
