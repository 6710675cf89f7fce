"""Context and continuation ids, truncation, and the errors of pairs that cannot be scored."""

from __future__ import annotations

import pytest

from lensprune.errors import UserError
from lensprune.protocols.encoding import generate_request, loglikelihood_request
from tests.helpers.families import byte_tokenizer

TOKENIZER = byte_tokenizer()
BOS = TOKENIZER.bos_token_id


def encode(text: str, add_special_tokens: bool | None) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


def encode_with_bos(text: str, add_special_tokens: bool | None) -> list[int]:
    return ([] if add_special_tokens is False else [BOS]) + TOKENIZER.encode(text, add_special_tokens=False)


def pair(context: str, continuation: str, max_length: int = 100, encode=encode):
    return loglikelihood_request(encode, BOS, max_length, context, continuation, "item 7")


def ids(text: str) -> tuple[int, ...]:
    return tuple(TOKENIZER.encode(text))


def test_white_space_at_the_end_of_the_context_moves_to_the_continuation():
    request, cut = pair("Q: \n ", "yes")
    assert request.context_ids == ids("Q:")
    assert request.continuation_ids == ids(" \n yes")
    assert cut == 0


def test_a_token_over_the_border_counts_by_position():
    merged = {"ab": [9], "a": [7], "abc": [9, 8]}
    request, _ = loglikelihood_request(lambda text, special: merged[text], BOS, 100, "a", "bc", "item 7")
    assert (request.context_ids, request.continuation_ids) == ((7,), (8,))


def test_bos_belongs_to_the_context():
    request, _ = pair("ab", "c", encode=encode_with_bos)
    assert (request.context_ids, request.continuation_ids) == ((BOS, *ids("ab")), ids("c"))


def test_empty_context_becomes_the_prefix_token():
    request, _ = pair("", "ab", encode=encode_with_bos)
    assert (request.context_ids, request.continuation_ids) == ((BOS,), ids("ab"))


def test_a_prefix_token_spelled_by_the_continuation_is_not_doubled():
    request, _ = pair("", "<bos>ab")
    assert (request.context_ids, request.continuation_ids) == ((BOS,), ids("ab"))


@pytest.mark.parametrize(("context", "continuation"), [("ab", ""), ("", ""), ("", "<bos>")])
def test_nothing_to_score_names_the_item(context: str, continuation: str):
    with pytest.raises(UserError, match=r"item 7.*adds no token"):
        pair(context, continuation)


def test_nothing_to_condition_on_names_the_item():
    with pytest.raises(UserError, match=r"item 7.*white space"):
        pair("  \n", "a")


def test_left_truncation_keeps_one_token_more_than_the_context_holds():
    fits, cut = pair("abcdefg", "hi", max_length=8)
    assert (fits.context_ids, cut) == (ids("abcdefg"), 0)
    request, cut = pair("abcdefg", "hi", max_length=5)
    assert (request.context_ids, request.continuation_ids, cut) == (ids("defg"), ids("hi"), 3)


def test_continuation_longer_than_the_context_is_refused():
    with pytest.raises(UserError, match=r"item 7.*6 tokens.*only 5"):
        pair("a", "bcdefg", max_length=5)
    request, cut = pair("ab", "cdefg", max_length=5)
    assert (request.context_ids, cut) == (ids("b"), 1)


def generate(context: str, max_length: int, max_new_tokens: int, encode=encode):
    return generate_request(encode, BOS, max_length, context, ("\n",), max_new_tokens, "item 7")


def test_generation_keeps_room_for_the_answer():
    request, cut = generate("abcdefg ", 8, 3)
    assert (request.context_ids, cut) == (ids("defg "), 3)
    assert (request.until, request.max_new_tokens) == (("\n",), 3)


def test_generation_from_nothing_starts_with_the_prefix_token():
    assert generate("", 8, 3)[0].context_ids == (BOS,)


@pytest.mark.parametrize("new_tokens", [0, -1])
def test_generation_of_nothing_is_refused(new_tokens: int):
    with pytest.raises(UserError, match="must be positive"):
        generate("a", 8, new_tokens)


def test_generation_without_room_for_a_prompt_is_refused():
    with pytest.raises(UserError, match="8 new tokens leave no room"):
        generate("a", 8, 8)
