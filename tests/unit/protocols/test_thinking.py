"""Thinking is told apart from the answer by its markers; stop strings end the answer alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lensprune.errors import UserError
from lensprune.protocols import GenerateRequest, build_requests, score_items
from lensprune.protocols.requests import ForcedEnd, GenerateResponse, Thinking
from lensprune.protocols.stop_strings import StopStrings
from lensprune.protocols.stopping import StopMatcher
from lensprune.protocols.thinking import markers_of
from tests.helpers.chat_models import chat_tokenizer
from tests.helpers.toy_task import generation_format, loaded, model

TOKENIZER = chat_tokenizer("qwen")
CHANNELS = chat_tokenizer("channels")
EOS = TOKENIZER.eos_token_id


def written(
    text: str, *until: str, opened: bool = False, tokenizer: Any = TOKENIZER, max_new_tokens: int = 500
) -> GenerateResponse:
    """What a row leaves in which the model writes `text`."""
    markers = markers_of(tokenizer, "toy")
    assert markers is not None
    matcher = StopMatcher(
        StopStrings(tokenizer, until),
        {EOS},
        Thinking(markers.start_ids, markers.end_ids, markers.forced_ids[: -len(markers.end_ids)], opened),
    )
    for token in tokenizer.encode(text, add_special_tokens=False)[:max_new_tokens]:
        if (reason := matcher.push(token)) is not None:
            return matcher.response(reason)
    return matcher.response("length")


def test_the_answer_follows_the_last_end_marker() -> None:
    said = written("<think>2 + 2 is 4.</think>\n\n4<eos>")
    assert (said.thinking, said.text, said.n_thinking_tokens) == ("2 + 2 is 4.", "4", len("2 + 2 is 4."))
    assert (said.stop_reason, said.thinking_ended) == ("eos", True)
    twice = written("<think>a</think>b<think>c</think>d<eos>")
    assert (twice.thinking, twice.text) == ("a</think>b<think>c", "d")
    # The template has opened the block, so the model writes its end alone.
    opened = written("4, I think.</think>4<eos>", opened=True)
    assert (opened.thinking, opened.text) == ("4, I think.", "4")
    # Nothing opened it, and it has an end all the same.
    assert written("4, I think.</think>4<eos>").text == "4"


def test_a_text_without_thinking_is_the_answer() -> None:
    said = written("\n 4<eos>")
    assert (said.thinking, said.text, said.n_thinking_tokens, said.thinking_ended) == ("", "4", 0, True)


@pytest.mark.parametrize(
    ("text", "opened"), [("<think>and so on", False), ("and so on", True), ("and so on<eos>", True)]
)
def test_thinking_that_never_ends_leaves_no_answer(text: str, opened: bool) -> None:
    said = written(text, "zz", opened=opened)
    assert (said.thinking, said.text, said.thinking_ended) == ("and so on", "", False)
    assert said.n_thinking_tokens == len("and so on")


def test_stop_strings_end_the_answer_and_not_the_thinking() -> None:
    said = written("<think>one\n\ntwo Q: three</think>\n\n4.\n\nQ: next<eos>", "\n\n", "Q:")
    assert (said.thinking, said.text) == ("one\n\ntwo Q: three", "4.")
    assert said.stop_reason == "stop_string"
    assert TOKENIZER.decode(said.token_ids).endswith("4.\n\n")
    # The stop string may come in pieces, far behind the marker, or at once.
    assert written("<think>a</think>" + "\n" * 30 + "b" * 40 + "Q:c", "Q:").text == "b" * 40
    assert written("<think>a</think>Q: b", "Q:").text == ""
    # Without thinking they count from the first letter on.
    assert written("\n\n4\n\n5", "\n\n").text == "4"
    # Thinking that is opened again is thinking again.
    again = written("<think>a</think>b<think>\n\n</think>c\n\nd", "\n\n")
    assert (again.text, again.stop_reason) == ("c", "stop_string")


def test_markers_may_be_special_tokens_and_several_of_them() -> None:
    text = "<|channel|>analysis<|message|>2 + 2.\n\n<|end|><|start|>assistant<|channel|>final<|message|>4<|return|>"
    said = written(text, "\n\n", tokenizer=CHANNELS)
    assert (said.thinking, said.text, said.n_thinking_tokens) == ("2 + 2.\n\n", "4", 8)
    markers = markers_of(CHANNELS, "toy")
    assert markers is not None
    assert CHANNELS.decode(list(markers.forced_ids)) == "<|end|><|start|>assistant<|channel|>final<|message|>"
    assert markers.forced_ids[-len(markers.end_ids) :] == markers.end_ids


def test_markers_are_the_tokenizers_or_those_that_are_named() -> None:
    found = markers_of(TOKENIZER, "toy")
    assert found is not None
    assert (found.start, found.end, len(found.start_ids), len(found.end_ids)) == ("<think>", "</think>", 1, 1)
    assert found.forced_ids == found.end_ids
    assert markers_of(chat_tokenizer("llama"), "toy") is None
    named = markers_of(TOKENIZER, "toy", ("<|im_start|>", "<|im_end|>"))
    assert named is not None
    assert named.end_ids == (TOKENIZER.convert_tokens_to_ids("<|im_end|>"),)
    assert found.opened_by("Well? <think>\n")
    assert not found.opened_by("Well? <think>\n\n</think>\n\n")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("<think>", "</thnk>"), "think token '</thnk>' is not a token of toy: did you mean </think>"),
        (("<reason>", "</think>"), "think token '<reason>' is not a token of toy"),
        (("", "</think>"), "think token '' is not a token of toy"),
        (("<think>", "<think>"), "are the same"),
    ],
)
def test_think_tokens_that_the_tokenizer_lacks_are_refused(given: tuple[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        markers_of(TOKENIZER, "toy", given)
    assert "\n" not in str(caught.value)


def asked(name: str, max_new_tokens: int = 16, **options: Any) -> list[GenerateRequest]:
    task = loaded(generation=generation_format(max_new_tokens=max_new_tokens))
    built = build_requests(model(n_ctx=2048, tokenizer=chat_tokenizer(name)), task, "generate", **options)
    requests = [request for item in built for request in item.requests]
    return [request for request in requests if isinstance(request, GenerateRequest)]


def test_requests_say_where_thinking_is() -> None:
    markers = markers_of(TOKENIZER, "toy")
    assert markers is not None
    (first, _) = asked("qwen", chat_template=True, thinking="on", thinking_budget=7)
    assert first.thinking == Thinking(markers.start_ids, markers.end_ids)
    assert first.forced_end == ForcedEnd(7, markers.end_ids, markers.end_ids)
    (first, _) = asked("deepseek", chat_template=True)
    assert first.thinking is not None
    assert first.thinking.opened
    assert first.forced_end is None
    # Without the chat format nothing is told apart unless its marks are named.
    assert all(request.thinking is None for request in asked("qwen"))
    assert all(request.thinking is not None for request in asked("qwen", think_tokens=("<think>", "</think>")))
    assert all(request.thinking is None for request in asked("llama", chat_template=True))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("llama", {"thinking": "on"}, "toy-model has no enable_thinking: it offers date_string"),
        ("llama", {"thinking": "off"}, "toy-model has no enable_thinking: it offers date_string"),
        ("channels", {"thinking": "on"}, "it offers reasoning_effort"),
        ("deepseek", {"thinking": "off"}, "begins every answer with <think>: use thinking auto"),
        ("llama", {"thinking_budget": 3}, "toy-model has no known think tokens"),
        (
            "qwen",
            {"thinking_budget": 16},
            "thinking budget of 16 tokens and the 1 that end it leave no room for an answer in 16 new tokens",
        ),
        ("qwen", {"thinking_budget": 15}, "thinking budget of 15 tokens and the 1 that end it leave no room"),
        ("qwen", {"template_args": {"enabl": 1}}, "template argument 'enabl' .* did you mean enable_thinking"),
        ("deepseek", {"template_args": {"effort": 1}}, "it offers no argument"),
        ("qwen", {"template_args": {"answer": 1}}, "'answer' .* it offers enable_thinking \\(as"),
    ],
)
def test_what_the_template_can_not_do_is_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        asked(name, chat_template=True, **options)
    assert "\n" not in str(caught.value)


def test_thinking_is_on_already_where_the_template_opens_it() -> None:
    assert asked("deepseek", chat_template=True, thinking="on") == asked("deepseek", chat_template=True)


def test_an_answer_that_thinking_leaves_no_room_for_is_cut_off() -> None:
    task = loaded()
    items = build_requests(model(n_ctx=2048, tokenizer=TOKENIZER), task, "generate", chat_template=True, thinking="on")
    # The right answer stands in the thinking, where it does not count.
    unfinished, finished = written("<think>the answer is four"), written("<think>it is four</think>is two<eos>")
    cut, other = score_items(task, "generate", items, [unfinished, finished])
    assert (cut.failure, cut.correct, cut.prediction, cut.text) == ("cut_off", False, None, "")
    assert set(cut.metrics.values()) == {0.0}
    assert cut.thinking == "the answer is four"
    assert cut.n_thinking_tokens == len("the answer is four")
    assert (other.failure, other.correct, other.text, other.thinking) == ("none", True, "is two", "it is four")
    # The same text counts where nothing is told apart.
    plain, _ = score_items(task, "generate", items, [replace(unfinished, thinking_ended=True, text="is four")] * 2)
    assert plain.correct


def followed(request: GenerateRequest, tokenizer: Any, says: str) -> GenerateResponse:
    """A loop in which the model says `says`, byte by byte, and the request's forced end is put in."""
    matcher = StopMatcher(StopStrings(tokenizer, request.until), {EOS}, request.thinking)
    told, forced = iter(tokenizer.encode(says, add_special_tokens=False)), request.forced_end
    assert forced is not None
    waiting: list[int] = []
    while len(matcher.token_ids) < request.max_new_tokens:
        ids = matcher.token_ids
        marked = any(ids[i : i + len(forced.marker_ids)] == forced.marker_ids for i in range(len(ids)))
        if len(ids) == forced.after and not marked:
            waiting = list(forced.forced_ids)
        if waiting:
            matcher.force(waiting.pop(0))
        elif (reason := matcher.push(next(told))) is not None:
            return matcher.response(reason)
    return matcher.response("length")


@pytest.mark.parametrize(
    ("name", "says", "thinking", "answer"),
    [
        # The budget counts from the first token on, the start marker's included.
        ("qwen", "<think>one two is two<eos>", "one tw", "o is two"),
        ("qwen", "<think>one</think>is two<eos>", "one", "is two"),
        ("deepseek", "one two is two<eos>", "one two", "is two"),
    ],
)
def test_a_budget_ends_the_thinking_and_the_answer_goes_on(name: str, says: str, thinking: str, answer: str) -> None:
    tokenizer = chat_tokenizer(name)
    first, _ = asked(name, 60, chat_template=True, thinking_budget=7)
    said = followed(first, tokenizer, says)
    assert (said.thinking, said.text, said.thinking_ended) == (thinking, answer, True)


def test_a_budget_in_channels_ends_the_message_too() -> None:
    first, _ = asked("channels", 60, chat_template=True, thinking_budget=13)
    said = followed(first, CHANNELS, "<|channel|>analysis<|message|>one is two<eos>")
    assert (said.thinking, said.text) == ("one", "is two")
    assert "<|end|><|start|>assistant<|channel|>final<|message|>" in CHANNELS.decode(said.token_ids)
