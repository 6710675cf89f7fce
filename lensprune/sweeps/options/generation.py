"""How texts are generated and tokens sampled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from lensprune.errors import UserError
from lensprune.protocols.requests import GenerationConfigUse
from lensprune.sweeps.options.declare import Group, between, decimal, one_of, option, whole_number, within
from lensprune.sweeps.options.prompts import MAX_TOKENS
from lensprune.tasks.generation_settings import MAX_TEMPERATURE, MIN_TEMPERATURE

MAX_SAMPLES = 1000


def _check_temperature(value: float) -> None:
    if value != 0 and not MIN_TEMPERATURE <= value <= MAX_TEMPERATURE:
        raise UserError(
            f"temperature {value:g} is not possible: expected 0, which decodes greedily, or a number from "
            f"{MIN_TEMPERATURE:g} to {MAX_TEMPERATURE:g}"
        )


def _check_texts(texts: Sequence[str]) -> None:
    if isinstance(texts, str) or not all(isinstance(text, str) and text for text in texts):
        raise UserError(f"until {texts!r} is not a list of stop strings: expected texts of at least one character")


@dataclass(frozen=True, kw_only=True)
class Generation(Group):
    """How texts are generated."""

    max_new_tokens: int | None = option(
        None,
        "most new tokens per text (default: the task's number)",
        metavar="N",
        parse=whole_number,
        check=between(1, MAX_TOKENS, "max new tokens", "tokens"),
    )
    until: Sequence[str] = option(
        (), "also stop a text at this string; repeat for several", metavar="TEXT", check=_check_texts, repeated=True
    )
    until_only: bool = option(False, "ignore the task's stop strings, and stop only at those of --until")
    generation_config: str = option(
        "model",
        "model (apply its generation config's penalties, suppressed tokens and end tokens) or none (ignore them)",
        metavar="USE",
        check=one_of(get_args(GenerationConfigUse), "use of the generation config"),
    )


@dataclass(frozen=True, kw_only=True)
class TokenSampling(Group):
    """How tokens are sampled."""

    temperature: float | None = option(
        None,
        "sample at this temperature; 0 decodes greedily (default: the task's, usually 0)",
        metavar="T",
        parse=decimal,
        check=_check_temperature,
    )
    top_p: float | None = option(
        None,
        "sample from the most likely tokens with this total probability (default: the task's or the model's, else 1)",
        metavar="P",
        parse=decimal,
        check=within(0, 1, "top-p", above=True),
    )
    top_k: int | None = option(
        None,
        "sample from the K most likely tokens, 0 for all (default: the task's or the model's, else 0)",
        metavar="K",
        parse=whole_number,
        check=between(0, MAX_TOKENS, "top-k", "tokens"),
    )
    samples: int | None = option(
        None,
        "texts to sample per item (default: the task's number, usually 1)",
        metavar="K",
        parse=whole_number,
        check=between(1, MAX_SAMPLES, "samples", "samples"),
    )
