"""Prompts in a model's chat format, as lm-eval's ``--apply_chat_template`` writes them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from lensprune.errors import UserError, first_line

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

_RENDERING_ERRORS = (TemplateError, TypeError, ValueError, LookupError, AttributeError)


def check_chat_template(tokenizer: PreTrainedTokenizerBase, model_name: str) -> None:
    """Raise `UserError` if the tokenizer has no chat template, or several and none that is the default."""
    template = tokenizer.chat_template
    if not template:
        raise UserError(f"{model_name} has no chat template: use chat_template=False, or an instruct model")
    if isinstance(template, dict) and "default" not in template:
        raise UserError(
            f"{model_name} has the chat templates {', '.join(sorted(template))} and none called default: set its "
            "tokenizer's chat_template to the text of one of them"
        )


def chat_prompt(tokenizer: PreTrainedTokenizerBase, system: str, user: str) -> tuple[str, bool]:
    """One user message (examples and question together) after an optional system message, up to the answer's start.

    The prompt holds the user's text, whatever the template: one that loses it (a vision model's, which reads lists of
    content parts) is given parts. A template that refuses a system message, or drops it, gets the user message alone
    (``HFLM.apply_chat_template``).

    Returns:
        The prompt, and whether it holds `system`.

    Raises:
        UserError: no way of writing the messages leaves the user's text in the prompt.
    """
    problem = ""
    for described in (True, False) if system else (False,):
        for in_parts in (False, True):
            messages = [("system", system)] if described else []
            try:
                prompt = _render(tokenizer, [*messages, ("user", user)], in_parts)
            except _RENDERING_ERRORS as error:
                problem = problem or f" ({first_line(error)})"
                continue
            # Templates trim what they are given.
            if user.strip() in prompt and (not described or system.strip() in prompt):
                return prompt, described
    raise UserError(f"the chat template leaves the question out of the prompt{problem}: use chat_template=False")


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[tuple[str, str]], in_parts: bool) -> str:
    written: list[dict[str, Any]] = [
        {"role": role, "content": [{"type": "text", "text": text}] if in_parts else text} for role, text in messages
    ]
    template = tokenizer.get_chat_template()
    if "strftime_now" in template:
        template = _CLOCK + template
    return str(
        tokenizer.apply_chat_template(written, chat_template=template, tokenize=False, add_generation_prompt=True)
    )
