"""What a tokenizer or a chat template adds by itself: tokens behind the text, and today's date."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pytest
from tokenizers import processors
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from lensprune.errors import UserError
from lensprune.models.tokenizers import encode
from lensprune.protocols import build_requests
from lensprune.protocols.chat import chat_prompt, template_date_of
from lensprune.protocols.dates import DEFAULT_DATE
from lensprune.protocols.encoding import loglikelihood_request
from tests.helpers.families import byte_tokenizer
from tests.helpers.tiny_models import tiny
from tests.helpers.toy_task import loaded, model


@dataclass
class WithTokenizer:
    tokenizer: PreTrainedTokenizerFast
    facts: Any


def adding(single: str) -> WithTokenizer:
    tokenizer = byte_tokenizer()
    special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<bos>", "<eos>")]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
    return WithTokenizer(tokenizer, tiny("llama").facts)


@pytest.mark.parametrize(
    ("single", "front"), [("$A <eos>", []), ("<bos> $A <eos>", ["<bos>"]), ("<bos> $A", ["<bos>"]), ("$A", [])]
)
@pytest.mark.parametrize("asked", [None, True])
def test_tokens_behind_the_text_are_left_out(single: str, front: list[str], asked: bool | None) -> None:
    model: Any = adding(single)
    own = model.tokenizer.encode("2 + 3 =", add_special_tokens=False)
    assert encode(model, "2 + 3 =", asked) == [*model.tokenizer.convert_tokens_to_ids(front), *own]
    # An EOS that the text itself spells is its own.
    spelled = encode(model, "a<eos>", asked)
    assert spelled[-2:] == [*model.tokenizer.encode("a", add_special_tokens=False), model.tokenizer.eos_token_id]
    assert spelled.count(model.tokenizer.eos_token_id) == 1


def test_the_answer_keeps_its_first_token_and_no_eos_is_scored() -> None:
    model: Any = adding("<bos> $A <eos>")

    def ids(text: str, special: bool | None) -> list[int]:
        return encode(model, text, special)

    request, _ = loglikelihood_request(ids, 1, 100, "2 + 3 =", " 5", "here")
    assert model.tokenizer.decode(request.continuation_ids) == " 5"
    assert model.tokenizer.decode(request.context_ids) == "<bos>2 + 3 ="


def test_a_template_with_a_clock_writes_one_date_whatever_the_day(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "\n {{ strftime_now('%d %b %Y') }}: {{ messages[-1].content }}"

    class Tomorrow(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            return datetime(2031, 1, 2)

    monkeypatch.setattr(chat_template_utils, "datetime", Tomorrow)
    assert "2031" in tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False)
    written, _ = chat_prompt(tokenizer, "", "hello")
    assert written == "\n 26 Jul 2024: hello"
    assert template_date_of(tokenizer) == DEFAULT_DATE == "2024-07-26"


@pytest.mark.parametrize(
    ("code", "written"),
    [("%d %b %Y", "02 Jan 2031"), ("%A, %-d %B %y", "Thursday, 2 January 31"), ("%x %H:%M", "01/02/31 00:00")],
)
def test_a_chosen_date_is_written_in_every_format(code: str, written: str) -> None:
    tokenizer = byte_tokenizer()
    # Llama 3.2's way of asking whether there is a clock, also inside a macro.
    tokenizer.chat_template = (
        "{% macro today() %}{% if strftime_now is defined %}{{ strftime_now('CODE') }}{% endif %}{% endmacro %}"
        "{{ today() }}: {{ messages[-1].content }}"
    ).replace("CODE", code)
    assert chat_prompt(tokenizer, "", "hello", "2031-01-02") == (f"{written}: hello", False)
    asked = build_requests(
        model(tokenizer=tokenizer), loaded(), "continuation", chat_template=True, template_date="2031-01-02"
    )
    assert all(prompt.context.startswith(f"{written}: ") for item in asked for prompt in item.prompts)


def test_a_date_for_a_template_without_a_clock_is_refused() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ messages[-1].content }}"
    assert template_date_of(tokenizer, "2031-01-02") is None
    with pytest.raises(UserError, match="template date 2031-01-02 is given, but the chat template of toy-model reads"):
        build_requests(
            model(tokenizer=tokenizer), loaded(), "continuation", chat_template=True, template_date="2031-01-02"
        )
