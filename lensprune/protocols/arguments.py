"""Keyword arguments of functions that hand them on to `lensprune.protocols.prompting`; imports no library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

__all__ = ["PromptArguments"]


class PromptArguments(TypedDict, total=False):
    """The fields of `lensprune.protocols.prompting.PromptOptions`."""

    chat_template: bool
    template_date: str | None
    template_args: Mapping[str, Any] | None
    fewshot_as_multiturn: bool
    system: str | None
    keep_eos: bool
    thinking: str
    think_tokens: tuple[str, str] | None
    thinking_budget: int | None
