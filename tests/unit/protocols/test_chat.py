"""Chat templates of every kind: the prompt holds the question, or the template is refused."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest

from lensprune.errors import UserError
from lensprune.protocols import build_requests
from lensprune.protocols.chat import chat_prompt
from tests.helpers.toy_task import TOKENIZER, loaded, model

START = "{% for m in messages %}<{{ m['role'] }}>"
END = "{% endfor %}<assistant>"
PLAIN = f"{START}{{{{ m['content'] }}}}{END}"
TRIMMED = f"{START}{{{{ m['content'] | trim }}}}{END}"
TEXT_PART = "{% if p['type'] == 'text' %}{{ p['text'] }}{% endif %}"
PARTS = f"{START}{{% for p in m['content'] %}}{TEXT_PART}{{% endfor %}}{END}"
FIRST_PART = f"{START}{{{{ m['content'][0]['text'] }}}}{END}"
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
DEAF = "{% for m in messages if m['role'] == 'user' %}<user>{{ m['content'] }}" + END
LOSING = f"{START}{END}"


def with_template(template: Any) -> Any:
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    ("template", "expected", "described"),
    [
        (PLAIN, "<system>Be brief. <user> 2+2? <assistant>", True),
        (TRIMMED, "<system>Be brief.<user>2+2?<assistant>", True),
        (PARTS, "<system>Be brief. <user> 2+2? <assistant>", True),
        (FIRST_PART, "<system>Be brief. <user> 2+2? <assistant>", True),
        (NO_SYSTEM + PLAIN, "<user> 2+2? <assistant>", False),
        (NO_SYSTEM + PARTS, "<user> 2+2? <assistant>", False),
        (DEAF, "<user> 2+2? <assistant>", False),
    ],
)
def test_the_prompt_holds_the_question(template: str, expected: str, described: bool) -> None:
    assert chat_prompt(with_template(template), "Be brief. ", " 2+2? ") == (expected, described)


@pytest.mark.parametrize(
    "template", [LOSING, "{{ raise_exception('never') }}", "{{ messages[0]['content'][:3] }}", "{% for"]
)
def test_a_template_that_loses_the_question_is_refused(template: str) -> None:
    with pytest.raises(UserError, match="leaves the question out of the prompt") as caught:
        build_requests(model(tokenizer=with_template(template)), loaded(), "continuation", chat_template=True)
    assert "\n" not in str(caught.value)


def test_named_templates_without_a_default_are_listed() -> None:
    named = with_template({"tool_use": PLAIN, "rag": PLAIN})
    with pytest.raises(UserError, match="toy-model has the chat templates rag, tool_use and none called default"):
        build_requests(model(tokenizer=named), loaded(), "continuation", chat_template=True)
    named = with_template({"tool_use": LOSING, "default": PLAIN})
    (first, _) = build_requests(model(tokenizer=named), loaded(), "continuation", chat_template=True)
    assert "Q: 2+2?" in first.prompts[0].context


def test_a_description_that_the_template_refuses_is_left_out_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    without = model(tokenizer=with_template(NO_SYSTEM + PLAIN))
    with caplog.at_level(logging.WARNING, "lensprune"):
        (first, _) = build_requests(without, loaded(), "continuation", chat_template=True)
    assert first.prompts[0].context == "<user>Q: 0+1?\nA: one\n\nQ: 2+2?\nA:<assistant>"
    (message,) = caplog.messages
    assert "2 of 2 prompts lack the task's description" in message
    caplog.clear()
    build_requests(model(tokenizer=with_template(PLAIN)), loaded(), "continuation", chat_template=True)
    assert not caplog.messages
