"""Prompts in a model's chat format, as lm-eval's ``--apply_chat_template`` writes them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any

from jinja2 import Environment, meta, nodes
from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from lensprune.errors import UserError, first_line, nearest
from lensprune.protocols.dates import DEFAULT_DATE
from lensprune.protocols.thinking import ThinkingMarkers

__all__ = ["ENABLE_THINKING", "chat_prompt", "check_chat_template", "template_date_of", "thinking_arguments"]

_CLOCK = "strftime_now"
"""The function with which a template reads the time."""

ENABLE_THINKING = "enable_thinking"
"""The variable with which templates switch thinking on or off."""

_GIVEN = frozenset(
    {"messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "raise_exception", _CLOCK}
)
"""Variables that a template always gets, besides special tokens."""
_RENDERING_ERRORS = (TemplateError, TypeError, ValueError, LookupError, AttributeError)


def check_chat_template(
    tokenizer: PreTrainedTokenizerBase,
    model_name: str,
    template_date: str | None = None,
    template_args: Mapping[str, Any] | None = None,
) -> None:
    """Raise `UserError` if the tokenizer has no chat template or several without a default, if a date is given and the
    template writes none, or if a variable is given that it does not read."""
    template = tokenizer.chat_template
    if not template:
        raise UserError(f"{model_name} has no chat template: use chat_template=False, or an instruct model")
    if isinstance(template, dict) and "default" not in template:
        raise UserError(
            f"{model_name} has the chat templates {', '.join(sorted(template))} and none called default: set the "
            "tokenizer's chat_template to the text of one of them"
        )
    if template_date is not None and template_date_of(tokenizer) is None:
        raise UserError(
            f"template date {template_date} is given, but the chat template of {model_name} reads no clock "
            "(strftime_now): leave the date out"
        )
    offered = _variables(tokenizer) if template_args else ()
    for name in template_args or {}:
        if name not in offered:
            close = nearest(name, offered)
            hint = f"did you mean {' or '.join(close)}?" if close else _offer(offered)
            raise UserError(f"template argument {name!r} is not read by the chat template of {model_name}: {hint}")


def thinking_arguments(
    tokenizer: PreTrainedTokenizerBase,
    model_name: str,
    thinking: str,
    markers: ThinkingMarkers | None,
    template_args: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return `template_args` with the argument that turns thinking ``on`` or ``off``; unchanged for ``auto``.

    Raises:
        UserError: the template has no such argument; the message lists those it has.
    """
    given = dict(template_args or {})
    if thinking == "auto":
        return given
    offered = _variables(tokenizer)
    if ENABLE_THINKING in offered:
        return {**given, ENABLE_THINKING: thinking == "on"}
    refusal = f"thinking {thinking} is requested, but the chat template of {model_name}"
    prompt, _ = chat_prompt(tokenizer, "", "?", template_args=given)
    if markers is not None and markers.opened_by(prompt):
        if thinking == "on":
            return given
        raise UserError(f"{refusal} begins every answer with {markers.start}: use thinking auto")
    raise UserError(f"{refusal} has no {ENABLE_THINKING}: {_offer(offered)}")


def _offer(offered: Sequence[str]) -> str:
    if not offered:
        return "it offers no argument"
    return f"it offers {', '.join(offered)} (as template arguments)"


def _variables(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Names that the template reads, besides those that it always gets."""
    template = tokenizer.get_chat_template()
    environment = Environment(extensions=["jinja2.ext.loopcontrols"])
    # A tag specific to transformers, which marks the answers in a training text.
    plain = re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", template)
    try:
        tree = environment.parse(plain)
        names = meta.find_undeclared_variables(tree)
    except TemplateError as error:
        raise UserError(f"the chat template can't be read ({first_line(error)}): use chat_template=False") from None
    # A variable set in a branch counts as undeclared after it; it is listed only if the template tests whether it is
    # defined.
    tests = (test.node for test in tree.find_all(nodes.Test) if test.name in ("defined", "undefined", "none"))
    asked_for = {node.name for node in tests if isinstance(node, nodes.Name)}
    names -= {name.name for name in tree.find_all(nodes.Name) if name.ctx == "store"} - asked_for
    known = {*_GIVEN, *environment.globals, *tokenizer.SPECIAL_TOKENS_ATTRIBUTES, *tokenizer.special_tokens_map}
    return sorted(names - known)


def template_date_of(tokenizer: PreTrainedTokenizerBase, template_date: str | None = None) -> str | None:
    """The date that the chat template writes: `template_date` or `DEFAULT_DATE`; ``None`` if it reads no clock."""
    return (template_date or DEFAULT_DATE) if _CLOCK in tokenizer.get_chat_template() else None


def chat_prompt(
    tokenizer: PreTrainedTokenizerBase,
    system: str,
    turns: str | Sequence[tuple[str, str]],
    template_date: str | None = None,
    template_args: Mapping[str, Any] | None = None,
) -> tuple[str, bool]:
    """Format a chat prompt up to the start of the answer: an optional system message, then one or more turns.

    The prompt contains the text of every turn: a template that drops text (a vision model's, which reads lists of
    content parts) is given parts. A template that rejects or drops a system message gets the turns alone
    (``HFLM.apply_chat_template``).

    Args:
        turns: one user message, or (role, text) per message, where role is ``user`` or ``assistant``.
        template_date: the date that a template with a clock writes, YYYY-MM-DD; ``None`` is `DEFAULT_DATE`.
        template_args: further template variables, by name.

    Returns:
        The prompt, and whether it holds `system`.

    Raises:
        UserError: the template drops the messages' text in every format.
    """
    turns = [("user", turns)] if isinstance(turns, str) else list(turns)
    problem = ""
    for described in (True, False) if system else (False,):
        for in_parts in (False, True):
            messages = [("system", system), *turns] if described else turns
            try:
                prompt = _render(tokenizer, messages, in_parts, template_date or DEFAULT_DATE, template_args or {})
            except _RENDERING_ERRORS as error:
                problem = problem or f" ({first_line(error)})"
                continue
            # Templates strip the texts.
            if all(text.strip() in prompt for _, text in messages):
                return prompt, described
    lost = "the question" if len(turns) == 1 else "the question or an example"
    raise UserError(f"the chat template leaves {lost} out of the prompt{problem}: use chat_template=False")


def _render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[tuple[str, str]],
    in_parts: bool,
    date: str,
    arguments: Mapping[str, Any],
) -> str:
    written: list[dict[str, Any]] = [
        {"role": role, "content": [{"type": "text", "text": text}] if in_parts else text} for role, text in messages
    ]
    template = tokenizer.get_chat_template()
    if _CLOCK in template:
        template = _stopped_clock(date) + template
    return str(
        tokenizer.apply_chat_template(
            written, chat_template=template, tokenize=False, add_generation_prompt=True, **arguments
        )
    )


@cache
def _stopped_clock(date: str) -> str:
    """The clock as a macro, since a template takes only text; the newline after it belongs to the block."""
    day = datetime.fromisoformat(date)
    codes = [f"%{sign}{code}" for code in "aAbBcdDeFHIjmMpRSTuUVwWxXyY" for sign in ("-", "")]
    replaced = "".join(f" | replace('{code}', '{day.strftime(code)}')" for code in codes)
    return f"{{% macro {_CLOCK}(format) %}}{{{{ format{replaced} }}}}{{% endmacro %}}\n"
