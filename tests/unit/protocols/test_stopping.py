"""Stop strings across token borders, partial unicode, special tokens, and the text that is left."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lensprune.protocols.stop_strings import StopStrings
from lensprune.protocols.stopping import StopMatcher, cut_at_stops
from tests.helpers.families import byte_tokenizer

BYTES = byte_tokenizer()
EOS = BYTES.eos_token_id
SPECIAL = BYTES.pad_token_id


def merged_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with a few multi-character tokens, so that stop strings straddle borders."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = ["n:", "io", "Qu", "es", "Ċ", "Ġ"]
    merges = [("n", ":"), ("i", "o"), ("Q", "u"), ("e", "s"), ("Ċ", "Ċ"), ("x", "Ċ")]
    tokens = ["<eos>", "<|stop|>", *alphabet, *(a + b for a, b in merges)]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens + pieces))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", additional_special_tokens=["<|stop|>"]
    )


MERGED = merged_tokenizer()


def feed(matcher: StopMatcher, ids: list[int]) -> tuple[str | None, int]:
    """Push until a stop; the reason and how many tokens were used."""
    for count, token in enumerate(ids, start=1):
        reason = matcher.push(token)
        if reason:
            return reason, count
    return None, len(ids)


def test_stops_on_eos_and_keeps_its_token():
    matcher = StopMatcher(StopStrings(BYTES, ["\n\n"]), {EOS})
    ids = [*BYTES.encode("ab"), EOS, *BYTES.encode("never")]
    assert feed(matcher, ids) == ("eos", 3)
    assert matcher.token_ids == tuple(ids[:3])
    assert matcher.text() == "ab"


def test_stop_string_over_token_borders():
    ids = MERGED.encode("18\n\nQuestion: next")
    assert any(MERGED.decode([i]) == "n:" for i in ids), "the stop string must end inside a merged token"
    matcher = StopMatcher(StopStrings(MERGED, ["Question:"]), {MERGED.eos_token_id})
    reason, used = feed(matcher, ids)
    assert reason == "stop_string"
    assert MERGED.decode(ids[:used]).endswith("Question:")
    assert matcher.text() == "18\n\n"


def test_stop_string_inside_one_token_cuts_inside_it():
    ids = MERGED.encode("ax\n\nb")
    matcher = StopMatcher(StopStrings(MERGED, ["\n"]), {MERGED.eos_token_id})
    reason, _ = feed(matcher, ids)
    assert reason == "stop_string"
    assert matcher.text() == "ax"


def test_partial_unicode_does_not_stop_early():
    stop = "→"
    ids = BYTES.encode("é → x")
    matcher = StopMatcher(StopStrings(BYTES, [stop]), {EOS})
    reason, used = feed(matcher, ids)
    assert (reason, used) == ("stop_string", len("é →".encode()))
    assert matcher.text() == "é "


def test_text_of_an_unfinished_character_is_the_tokenizers_own():
    ids = BYTES.encode("a→")[:-1]
    matcher = StopMatcher(StopStrings(BYTES, ["\n"]), {EOS})
    assert feed(matcher, ids)[0] is None
    assert matcher.text() == BYTES.decode(ids)


def test_stop_string_that_spells_a_special_token():
    special = MERGED.convert_tokens_to_ids("<|stop|>")
    matcher = StopMatcher(StopStrings(MERGED, ["<|stop|>"]), {MERGED.eos_token_id})
    assert feed(matcher, [*MERGED.encode("ab"), special]) == ("stop_string", 3)
    assert matcher.text() == "ab"


def test_eos_spelled_in_letters_stops_and_is_cut():
    ids = [token for character in "ab<eos>cd" for token in BYTES.encode(character)]
    assert EOS not in ids
    matcher = StopMatcher(StopStrings(BYTES, []), {EOS})
    assert feed(matcher, ids) == ("stop_string", len("ab<eos>"))
    assert matcher.text() == "ab"


def test_special_tokens_are_left_out_of_the_text():
    matcher = StopMatcher(StopStrings(BYTES, ["zz"]), {EOS})
    assert feed(matcher, [*BYTES.encode("a"), SPECIAL, *BYTES.encode("b")])[0] is None
    assert matcher.text() == "ab"


def test_cut_goes_through_the_stops_in_order():
    assert cut_at_stops("a\n\nQuestion: b", ["Question:", "\n\nQ"]) == "a\n\n"
    assert cut_at_stops("a\n\nQuestion: b", ["\n\nQ", "Question:"]) == "a"


@given(
    text=st.text(alphabet="abQé→\n :", max_size=40),
    stops=st.lists(st.text(alphabet="abQé→\n :", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_stops_exactly_when_the_text_first_holds_a_stop_string(text: str, stops: list[str]):
    ids = MERGED.encode(text)
    matcher = StopMatcher(StopStrings(MERGED, stops), {MERGED.eos_token_id})
    first = next((n for n in range(1, len(ids) + 1) if any(s in MERGED.decode(ids[:n]) for s in stops)), None)
    reason, used = feed(matcher, ids)
    assert (reason, used) == (("stop_string", first) if first else (None, len(ids)))
    assert not any(stop in matcher.text() for stop in stops)
