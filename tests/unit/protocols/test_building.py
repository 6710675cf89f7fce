"""Requests of a whole task: strings, ids, truncation, chat format."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace

import pytest

from lensprune.errors import UserError
from lensprune.protocols import GenerateRequest, LoglikelihoodRequest, build_requests
from lensprune.tasks.base import Item, LoadedTask
from tests.helpers.toy_task import DOCS, TOKENIZER, choice_format, generation_format, loaded, model

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


def _many(n: int, bad: int) -> LoadedTask:
    docs = [{"q": f"{i}?", "options": ["x", "y"], "gold": 0} for i in range(n)]
    docs[bad]["options"] = ["x", ""]
    return loaded(docs, choice=choice_format(target_delimiter=""))


def test_an_item_that_cannot_be_asked_is_left_out_and_counted(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, "lensprune"):
        built = build_requests(model(), _many(20, 3), "continuation")
    assert [asked.item.id for asked in built] == [str(i) for i in range(20) if i != 3]
    (message,) = caplog.messages
    assert "1 of 20 items can't be given to this model and are left out; the first: task 'toy', item 3" in message
    with pytest.raises(UserError, match="item 3: the continuation '' adds no token"):
        build_requests(model(), _many(9, 3), "continuation")


def test_a_tokenizer_without_bos_and_eos_misses_them_only_for_an_empty_context():
    bare = copy.deepcopy(TOKENIZER)
    bare.bos_token = bare.eos_token = None
    (first, _) = build_requests(model(tokenizer=bare), loaded(), "continuation")
    request = first.requests[0]
    assert isinstance(request, LoglikelihoodRequest)
    assert bare.decode(list(request.context_ids)) == first.prompts[0].context
    assert build_requests(model(tokenizer=bare), loaded(), "generate")[0].requests
    empty = choice_format(context=lambda doc: "", description=lambda doc: "")
    without = replace(loaded(choice=empty), items=(Item("0", DOCS[0]),))
    with pytest.raises(UserError, match="item 0: the context is empty, and the tokenizer has neither"):
        build_requests(model(tokenizer=bare), without, "continuation")
