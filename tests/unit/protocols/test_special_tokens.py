"""What a tokenizer or a chat template adds by itself: tokens behind the text, and today's date."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pytest
from tokenizers import processors
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from lensprune.models.tokenizers import encode
from lensprune.protocols.chat import TODAY, chat_prompt
from lensprune.protocols.encoding import loglikelihood_request
from tests.helpers.families import byte_tokenizer
from tests.helpers.tiny_models import tiny


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
    assert written == f"\n {TODAY:%d %b %Y}: hello" == "\n 26 Jul 2024: hello"
