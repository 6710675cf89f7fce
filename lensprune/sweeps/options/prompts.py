"""How prompts are written, and what comes between prompts and options."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lensprune.errors import UserError
from lensprune.protocols.dates import DEFAULT_DATE, check_date
from lensprune.sweeps.options.declare import Group, between, one_of, option, whole_number

THINKING = ("on", "off", "auto")


MAX_TOKENS = 1_000_000


class _Arguments(argparse.Action):
    """Collects the ``KEY=VALUE`` pairs of a repeated option."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        name, value = values
        given = getattr(namespace, self.dest) or {}
        if name in given:
            parser.error(f"argument {option_string}: {name} is given twice")
        setattr(namespace, self.dest, {**given, name: value})


def key_value(text: str) -> tuple[str, Any]:
    """Parse ``KEY=VALUE``, where the value is a number, ``true``, ``false``, ``null`` (as in JSON) or text, quoted or
    not."""
    name, sign, value = text.partition("=")
    if not sign or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, like reasoning_effort=low, not {text!r}")
    try:
        return name, json.loads(value, parse_constant=str)
    except ValueError:
        return name, value


def _check_arguments(given: Any) -> None:
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise UserError(
            f"template arguments {given!r} are not a mapping of names: expected one like {{'effort': 'low'}}"
        )
    for name, value in given.items():
        if name == "enable_thinking":
            raise UserError("template argument enable_thinking is set by thinking: choose thinking on, off or auto")
        if value is not None and not isinstance(value, (str, int, float)):
            raise UserError(f"template argument {name} is {value!r}: expected text, a number, true, false or null")


def _check_text(given: Any) -> None:
    if not isinstance(given, str):
        raise UserError(f"system prompt {given!r} is not text")


def _check_tokens(given: Any) -> None:
    if not isinstance(given, (tuple, list)) or len(given) != 2 or not all(isinstance(t, str) and t for t in given):
        raise UserError(f"think tokens {given!r} are not usable: expected a start and an end, like <think> </think>")


@dataclass(frozen=True, kw_only=True)
class Wording(Group):
    """How prompts are written, and which part of a text is thinking."""

    chat_template: bool = option(False, "put prompts into the model's chat format")
    template_date: str | None = option(
        None,
        f"date for chat templates that write today's date (default: {DEFAULT_DATE}, on any day)",
        metavar="DATE",
        check=check_date,
    )
    template_args: Mapping[str, Any] | None = option(
        None,
        "a variable of the chat template, like reasoning_effort=low; repeat for several",
        metavar="KEY=VALUE",
        parse=key_value,
        check=_check_arguments,
        flag="--template-arg",
        action=_Arguments,
    )
    fewshot_as_multiturn: bool = option(False, "in the chat format, make each few-shot example a separate turn")
    system: str | None = option(
        None, "system prompt, placed before the task's description", metavar="TEXT", check=_check_text
    )
    keep_eos: bool = option(
        False, "keep the EOS token that some tokenizers append to a prompt, as lm-eval does (default: leave it out)"
    )
    thinking: str = option(
        "auto",
        "thinking in the chat template: on, off or auto (the template's default)",
        metavar="MODE",
        check=one_of(THINKING, "thinking"),
    )
    think_tokens: tuple[str, str] | None = option(
        None,
        "tokens that start and end thinking (default: known ones, such as <think> and </think>, in the chat format)",
        metavar=("START", "END"),
        check=_check_tokens,
    )
    thinking_budget: int | None = option(
        None,
        "force the end of thinking after this many tokens (default: never)",
        metavar="N",
        parse=whole_number,
        check=between(1, MAX_TOKENS, "thinking budget", "tokens"),
    )


@dataclass(frozen=True, kw_only=True)
class Prompts(Wording):
    """What a prompt contains, and how it is written."""

    leave_out_repeated: bool = option(
        False, "leave out items that are among their own few-shot examples (default: keep them, with a warning)"
    )
    primary_metric: str | None = option(
        None,
        "metric that decides whether a generated answer is right, like equal,boxed (default: the task's)",
        metavar="NAME",
    )


@dataclass(frozen=True, kw_only=True)
class Prefix(Group):
    """What comes between prompts and options."""

    thinking_prefix: str | None = option(
        None,
        "clean: score options after the clean model's thinking, up to the thinking budget",
        metavar="MODEL",
        check=one_of(("clean",), "thinking prefix"),
    )
