"""Prompts in a model's chat format, as lm-eval's ``--apply_chat_template`` writes them."""

from __future__ import annotations

from datetime import datetime
from functools import cache
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from lensprune.errors import UserError, first_line
from lensprune.protocols.dates import DEFAULT_DATE

__all__ = ["chat_prompt", "check_chat_template", "template_date_of"]

_CLOCK = "strftime_now"
"""The function by which a template reads the time."""

_RENDERING_ERRORS = (TemplateError, TypeError, ValueError, LookupError, AttributeError)


def check_chat_template(tokenizer: PreTrainedTokenizerBase, model_name: str, template_date: str | None = None) -> None:
    """Raise `UserError` if the tokenizer has no chat template, or several and none that is the default, or if a date is
    given and the template writes none."""
    template = tokenizer.chat_template
    if not template:
        raise UserError(f"{model_name} has no chat template: use chat_template=False, or an instruct model")
    if isinstance(template, dict) and "default" not in template:
        raise UserError(
            f"{model_name} has the chat templates {', '.join(sorted(template))} and none called default: set its "
            "tokenizer's chat_template to the text of one of them"
        )
    if template_date is not None and template_date_of(tokenizer) is None:
        raise UserError(
            f"template date {template_date} is given, and the chat template of {model_name} reads no clock "
            "(strftime_now): leave the date out"
        )


def template_date_of(tokenizer: PreTrainedTokenizerBase, template_date: str | None = None) -> str | None:
    """The date that the chat template writes: `template_date`, else `DEFAULT_DATE`; ``None`` if it reads no clock."""
    return (template_date or DEFAULT_DATE) if _CLOCK in tokenizer.get_chat_template() else None


def chat_prompt(
    tokenizer: PreTrainedTokenizerBase, system: str, user: str, template_date: str | None = None
) -> tuple[str, bool]:
    """One user message (examples and question together) after an optional system message, up to the answer's start.

    The prompt holds the user's text, whatever the template: one that loses it (a vision model's, which reads lists of
    content parts) is given parts. A template that refuses a system message, or drops it, gets the user message alone
    (``HFLM.apply_chat_template``).

    Args:
        template_date: that a template with a clock writes, YYYY-MM-DD; ``None`` is `DEFAULT_DATE`.

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
                prompt = _render(tokenizer, [*messages, ("user", user)], in_parts, template_date or DEFAULT_DATE)
            except _RENDERING_ERRORS as error:
                problem = problem or f" ({first_line(error)})"
                continue
            # Templates trim what they are given.
            if user.strip() in prompt and (not described or system.strip() in prompt):
                return prompt, described
    raise UserError(f"the chat template leaves the question out of the prompt{problem}: use chat_template=False")


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[tuple[str, str]], in_parts: bool, date: str) -> str:
    written: list[dict[str, Any]] = [
        {"role": role, "content": [{"type": "text", "text": text}] if in_parts else text} for role, text in messages
    ]
    template = tokenizer.get_chat_template()
    if _CLOCK in template:
        template = _stopped_clock(date) + template
    return str(
        tokenizer.apply_chat_template(written, chat_template=template, tokenize=False, add_generation_prompt=True)
    )


@cache
def _stopped_clock(date: str) -> str:
    """The clock as a macro, since only text goes into a template; the newline after it is the block's own."""
    day = datetime.fromisoformat(date)
    codes = [f"%{sign}{code}" for code in "aAbBcdDeFHIjmMpRSTuUVwWxXyY" for sign in ("-", "")]
    replaced = "".join(f" | replace('{code}', '{day.strftime(code)}')" for code in codes)
    return f"{{% macro {_CLOCK}(format) %}}{{{{ format{replaced} }}}}{{% endmacro %}}\n"
