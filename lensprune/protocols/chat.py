"""Prompts in a model's chat format, as lm-eval's ``--apply_chat_template`` writes them."""

from __future__ import annotations

from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from lensprune.errors import UserError

__all__ = ["chat_prompt", "check_chat_template"]


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
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
