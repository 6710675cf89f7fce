"""Which tokens can complete a stop string, for tokenizers of several kinds; texts are decoded for these alone."""

from __future__ import annotations

from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from lensprune.errors import UserError
from lensprune.protocols.stop_strings import StopStrings, with_eos_string
from lensprune.protocols.stopping import StopMatcher
from tests.helpers.families import byte_tokenizer

BYTES = byte_tokenizer()
PIECES = ["▁", "a", "b", "▁a", "b:", ":", "▁:", "\n", "Q", "→", "a→", "▁.", ".", "n't", "'", "s", "▁'"]


def sentence_pieces(decoder: decoders.Decoder, clean_up: bool = False) -> PreTrainedTokenizerFast:
    """Pieces with a mark for spaces, and bytes for all other characters, as SentencePiece has them."""
    names = ["<eos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *PIECES]
    vocab = {name: i for i, name in enumerate(dict.fromkeys(names))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoder
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>", clean_up_tokenization_spaces=clean_up
    )
    made.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output = clean_up
    return made


LLAMA = sentence_pieces(
    decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
)
REPLACED_LATE = sentence_pieces(
    decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Replace("▁", " ")])
)
REPLACED_AFTER_BYTES = sentence_pieces(
    decoders.Sequence([decoders.ByteFallback(), decoders.ByteLevel(), decoders.Replace("b:", "Q:")])
)
STRIPPED = sentence_pieces(
    decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 0, 1)])
)
SUFFIXED = sentence_pieces(decoders.BPEDecoder(suffix="a"))
CLEANED = sentence_pieces(decoders.Metaspace(), clean_up=True)
METASPACE = sentence_pieces(decoders.Metaspace())
LOCAL = {"bytes": BYTES, "llama": LLAMA, "metaspace": METASPACE}
OTHER = {
    "replaced late": REPLACED_LATE,
    "replaced after bytes": REPLACED_AFTER_BYTES,
    "suffixed": SUFFIXED,
    "cleaned": CLEANED,
}


def id_of(tokenizer: PreTrainedTokenizerFast, piece: str) -> int:
    found = tokenizer.convert_tokens_to_ids(piece)
    assert isinstance(found, int)
    assert found != tokenizer.unk_token_id
    return found


def units_of(tokenizer: PreTrainedTokenizerFast, alphabet: str) -> list[list[int]]:
    """Tokens of the letters alone, and the bytes of a character, whole and, if that leaves other bytes as they are,
    in part."""
    units = [[i] for i in range(len(tokenizer)) if tokenizer.decode([i]).strip(alphabet) == ""]
    if tokenizer is not BYTES:
        return [*units, [id_of(tokenizer, f"<0x{byte:02X}>") for byte in "→".encode()]]
    arrow = tokenizer.encode("→", add_special_tokens=False)
    return [*units, arrow, arrow[:1], arrow[2:]]


@pytest.mark.parametrize("name", [*LOCAL, *OTHER])
@given(data=st.data())
def test_a_text_ends_where_decoding_it_anew_for_each_token_says(name: str, data: st.DataObject):
    tokenizer = {**LOCAL, **OTHER}[name]
    alphabet = "abQ:→\n .'s"
    stops = data.draw(st.lists(st.text(alphabet=alphabet, min_size=1, max_size=3), min_size=1, max_size=3))
    units = data.draw(st.lists(st.sampled_from(units_of(tokenizer, alphabet)), max_size=25))
    ids = [token for unit in units for token in unit]
    strings = StopStrings(tokenizer, stops)
    decoding, filtering = (StopMatcher(strings, set()) for _ in range(2))
    for token in ids:
        with mock.patch.object(StopStrings, "may_end_with", return_value=True):
            expected = decoding.push(token)
        assert filtering.push(token) == expected, (stops, ids)
        if expected:
            break
    assert filtering.text() == decoding.text()


@pytest.mark.parametrize("name", LOCAL)
def test_few_tokens_can_complete_a_stop_string(name: str):
    tokenizer = LOCAL[name]
    strings = StopStrings(tokenizer, ["Q:"])
    able = {tokenizer.decode([i]) for i in range(len(tokenizer)) if strings.may_end_with(i)}
    # What is left are parts of characters, and perhaps the last letter of the EOS string.
    whole = {text for text in able if "\ufffd" not in text}
    assert whole - {">"} == {":", "<eos>"}, "none of 'b:', 'Q' or ' :'"
    with mock.patch.object(type(tokenizer), "decode", wraps=tokenizer.decode) as decoded:
        matcher = StopMatcher(strings, set())
        for character in "aaabbbaaa":
            assert matcher.push(tokenizer.encode(character, add_special_tokens=False)[-1]) is None
    assert not decoded.called


@pytest.mark.parametrize("tokenizer", [*OTHER.values(), STRIPPED], ids=[*OTHER, "stripped"])
def test_all_tokens_can_where_a_token_may_change_the_text_before_it(tokenizer: PreTrainedTokenizerFast):
    strings = StopStrings(tokenizer, ["Q:"])
    assert all(strings.may_end_with(i) for i in range(len(tokenizer)))


def test_a_string_that_a_later_token_uncovers():
    # Tidying removes the space of " '" only once "s" follows.
    ids = [id_of(CLEANED, piece) for piece in ("b", "▁'", "s")]
    assert (CLEANED.decode(ids[:2]), CLEANED.decode(ids)) == ("b '", "b's")
    matcher = StopMatcher(StopStrings(CLEANED, ["b'"]), set())
    assert [matcher.push(token) for token in ids] == [None, None, "stop_string"]


def test_bytes_that_are_no_character():
    # After an unfinished character, a letter's byte is one more unknown character.
    ids = [id_of(LLAMA, piece) for piece in ("<0xE2>", "<0x41>")]
    assert [LLAMA.decode(ids[:n]) for n in (1, 2)] == ["\ufffd", "\ufffd\ufffd"]
    matcher = StopMatcher(StopStrings(LLAMA, ["\ufffd\ufffd"]), set())
    assert [matcher.push(token) for token in ids] == [None, "stop_string"]


def test_a_decoder_that_is_written_in_python():
    class Backwards:
        def decode_chain(self, tokens: list[str]) -> list[str]:
            return tokens[::-1]

    tokenizer = sentence_pieces(decoders.Fuse())
    tokenizer.backend_tokenizer.decoder = decoders.Decoder.custom(Backwards())
    assert StopStrings(tokenizer, ["Q"]).may_end_with(id_of(tokenizer, "a"))


@pytest.mark.parametrize("decoder", [decoders.BPEDecoder("a"), decoders.Fuse()])
def test_without_stop_strings_nothing_is_decoded(decoder: decoders.Decoder):
    tokenizer = sentence_pieces(decoder)
    tokenizer.eos_token = None
    matcher = StopMatcher(StopStrings(tokenizer, []), set())
    with mock.patch.object(type(tokenizer), "decode") as decoded:
        assert matcher.push(id_of(tokenizer, "a")) is None
    assert not decoded.called


def test_empty_stop_string_is_refused():
    with pytest.raises(UserError, match="stop string is empty"):
        StopStrings(BYTES, ["\n", ""])


def test_eos_string_is_added_once():
    assert with_eos_string(BYTES, ["\n"]) == ("\n", "<eos>")
    assert with_eos_string(BYTES, ["<eos>", "\n"]) == ("<eos>", "\n")
