"""How prompts are written and answers read for any task: chat format, system prompt, thinking."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lensprune.errors import UserError
from lensprune.models.base import HookedModel
from lensprune.protocols.chat import check_chat_template, thinking_arguments
from lensprune.protocols.thinking import ThinkingMarkers, markers_of

__all__ = ["PromptOptions", "Prompting", "prompting_of"]


@dataclass(frozen=True, kw_only=True)
class PromptOptions:
    """The sweep options of these names, as requested; see `lensprune.sweep`."""

    chat_template: bool = False
    template_date: str | None = None
    template_args: Mapping[str, Any] | None = None
    fewshot_as_multiturn: bool = False
    system: str | None = None
    keep_eos: bool = False
    thinking: str = "auto"
    think_tokens: tuple[str, str] | None = None
    thinking_budget: int | None = None


@dataclass(frozen=True)
class Prompting:
    """The requested options resolved for one model: the variables for its chat template, including those for thinking,
    and its think tokens (``None`` if thinking is not separated)."""

    wording: PromptOptions
    template_args: Mapping[str, Any]
    markers: ThinkingMarkers | None


def prompting_of(model: HookedModel, wording: PromptOptions) -> Prompting:
    """Check options against the model's tokenizer, and find its think tokens.

    Without the chat format, thinking is separated only if think tokens are given: a base model uses none.

    Raises:
        UserError: an option that the chat template or the tokenizer does not support.
    """
    tokenizer, name = model.tokenizer, model.facts.name
    if wording.chat_template:
        check_chat_template(tokenizer, name, wording.template_date, wording.template_args)
    marked = wording.chat_template or wording.think_tokens is not None
    markers = markers_of(tokenizer, name, wording.think_tokens) if marked else None
    arguments: dict[str, Any] = {}
    if wording.chat_template:
        arguments = thinking_arguments(tokenizer, name, wording.thinking, markers, wording.template_args)
    if markers is None and (wording.thinking == "on" or wording.thinking_budget is not None):
        budget = f"a thinking budget of {wording.thinking_budget} is given"
        what = "thinking on is requested" if wording.thinking == "on" else budget
        raise UserError(f"{what}, but {name} has no known think tokens: name them with think_tokens (START END)")
    return Prompting(wording, arguments, markers)
