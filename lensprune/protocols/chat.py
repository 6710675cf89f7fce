"""Prompts in a model's chat format, as lm-eval's ``--apply_chat_template`` writes them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from lensprune.errors import UserError

__all__ = ["TODAY", "chat_prompt", "check_chat_template"]

TODAY = datetime(2024, 7, 26)
"""The date that templates with a clock write: the one that Llama 3.1's falls back on. With the real one a run would ask
another prompt tomorrow, and couldn't be resumed."""

# Only text goes into a template, so its clock is one that a template can spell; the newline is the block's own.
_CLOCK = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(
        f" | replace('%{sign}{c}', '{TODAY.strftime(f'%{sign}{c}')}')" for c in "aAbBdHIjmMpSyY" for sign in ("-", "")
    )
    + " }}{% endmacro %}\n"
)


def check_chat_template(tokenizer: PreTrainedTokenizerBase, model_name: str) -> None:
    """Raise `UserError` if the tokenizer has no chat template."""
    if not tokenizer.chat_template:
        raise UserError(f"{model_name} has no chat template: use chat_template=False, or an instruct model")


def chat_prompt(tokenizer: PreTrainedTokenizerBase, system: str, user: str) -> str:
    """One user message (examples and question together) behind an optional system message, up to the answer's start.

    A template that refuses a system message gets the user message alone (``HFLM.apply_chat_template``).
    """
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": user})
    try:
        return _render(tokenizer, messages)
    except TemplateError:
        return _render(tokenizer, messages[-1:])


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]]) -> str:
    template = tokenizer.get_chat_template()
    if "strftime_now" in template:
        template = _CLOCK + template
    return str(
        tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, add_generation_prompt=True)
    )
