"""Requests of a whole task: strings, ids, truncation, chat format."""

from __future__ import annotations

import copy

import pytest

from lensprune.errors import UserError
from lensprune.protocols import GenerateRequest, LoglikelihoodRequest, build_requests
from tests.helpers.toy_task import TOKENIZER, choice_format, generation_format, loaded, model

SHOT = "Q: 0+1?\nA: one\n\n"


def text(ids: tuple[int, ...]) -> str:
    return TOKENIZER.decode(list(ids))


def test_one_request_an_option():
    first, second = build_requests(model(), loaded(), "continuation")
    assert [(p.context, p.continuation) for p in first.prompts] == [
        (f"Answer.\n\n{SHOT}Q: 2+2?\nA:", " three"),
        (f"Answer.\n\n{SHOT}Q: 2+2?\nA:", " four"),
    ]
    assert second.item.id == "1"
    for prompt, request in zip(first.prompts, first.requests, strict=True):
        assert isinstance(request, LoglikelihoodRequest)
        assert (text(request.context_ids), text(request.continuation_ids)) == (prompt.context, prompt.continuation)
    assert first.truncated_tokens == 0


def test_options_in_the_context():
    fmt = choice_format(
        context=lambda doc: f"{doc['q']} ", continuation=lambda doc: "is right.", description=lambda doc: ""
    )
    (first, _) = build_requests(model(), loaded(choice=fmt), "continuation")
    shot = "0+1? one is right.\n\n"
    assert [(p.context, p.continuation) for p in first.prompts] == [
        (f"{shot}2+2? three", " is right."),
        (f"{shot}2+2? four", " is right."),
    ]


def test_generation():
    (first, _) = build_requests(model(), loaded(), "generate")
    (request,) = first.requests
    assert isinstance(request, GenerateRequest)
    assert text(request.context_ids) == first.prompts[0].context == f"{SHOT}Q: 2+2?\nA:"
    assert (request.until, request.max_new_tokens) == (("\n\n", "Q:"), 16)


def test_truncation_is_counted_by_the_longest_option():
    (first, _) = build_requests(model(n_ctx=20), loaded(), "continuation")
    whole = len(first.prompts[0].context)
    assert first.truncated_tokens == whole + len(" three") - 21
    assert [len(r.context_ids) + len(r.continuation_ids) for r in first.requests] == [21, 21]
    (first, _) = build_requests(model(n_ctx=20), loaded(), "generate")
    assert first.truncated_tokens == len(first.prompts[0].context) - 4


def test_bos_policy_reaches_the_requests():
    (first, _) = build_requests(model(bos_policy="always"), loaded(), "generate")
    assert first.requests[0].context_ids[0] == TOKENIZER.bos_token_id


def test_errors_name_task_and_item():
    fmt = choice_format(target_delimiter="", choices=lambda doc: ["", "four"])
    with pytest.raises(UserError, match=r"task 'toy', item 0: the continuation ''"):
        build_requests(model(), loaded(choice=fmt), "continuation")
    with pytest.raises(UserError, match=r"task 'toy', item 0: 16 new tokens leave no room"):
        build_requests(model(n_ctx=16), loaded(), "generate")


def test_a_protocol_that_the_task_lacks():
    with pytest.raises(UserError, match=r"protocol of task 'toy'.*default"):
        build_requests(model(), loaded(), "default")


class TestChat:
    @staticmethod
    def tokenizer(template: str):
        tokenizer = copy.deepcopy(TOKENIZER)
        tokenizer.chat_template = template
        return tokenizer

    PLAIN = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + PLAIN

    def test_description_is_the_system_message_and_the_rest_one_turn(self):
        chat = model(tokenizer=self.tokenizer(self.PLAIN))
        (first, _) = build_requests(chat, loaded(), "continuation", chat_template=True)
        prompt = f"[system]Answer.\n\n[user]{SHOT}Q: 2+2?\nA:[assistant]"
        assert [(p.context, p.continuation) for p in first.prompts] == [(prompt, "three"), (prompt, "four")]

    def test_without_a_description_there_is_no_system_message(self):
        chat = model(tokenizer=self.tokenizer(self.PLAIN))
        (first, _) = build_requests(chat, loaded(), "generate", chat_template=True)
        assert first.prompts[0].context == f"[user]{SHOT}Q: 2+2?\nA:[assistant]"

    def test_a_template_without_system_messages_loses_it(self):
        chat = model(tokenizer=self.tokenizer(self.NO_SYSTEM))
        fmt = generation_format(description=lambda doc: "Answer.\n\n")
        (first, _) = build_requests(chat, loaded(generation=fmt), "generate", chat_template=True)
        assert first.prompts[0].context == f"[user]{SHOT}Q: 2+2?\nA:[assistant]"

    def test_a_model_without_a_template_is_refused(self):
        with pytest.raises(UserError, match="toy-model has no chat template"):
            build_requests(model(), loaded(), "generate", chat_template=True)
