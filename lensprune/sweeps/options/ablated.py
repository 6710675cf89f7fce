"""What replaces ablated activations, and which variants are measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from lensprune.ablation.choices import head_words, reference_kinds
from lensprune.ablation.components import Part, Slot
from lensprune.ablation.kinds import MeanMode
from lensprune.ablation.variants import Variant
from lensprune.engine.gradient_rules import GRADIENT_RULES
from lensprune.errors import UserError
from lensprune.registry import in_words
from lensprune.sweeps.options.declare import Group, decimal, one_of, option
from lensprune.sweeps.selection import VariantSelection

FEWSHOT = "fewshot"
"""The default for `reference`: each task's own few-shot examples."""
ANY_RULE = "any"
"""Ranks heads by their best rank under any gradient rule."""
SCREEN_RULES = (*GRADIENT_RULES, ANY_RULE)
"""How a screened sweep can rank heads."""


def _check_share(fraction: float) -> None:
    if not 0 < fraction < 1:
        raise UserError(f"screen {fraction:g} is not a share of the heads: expected a number between 0 and 1, like 0.1")


@dataclass(frozen=True, kw_only=True)
class Reference(Group):
    """What replaces ablated activations."""

    reference: str | Path = option(
        FEWSHOT,
        lambda: (
            f"file of reference texts for {in_words(reference_kinds(), 'and')} (default: the task's few-shot examples)"
        ),
        metavar="FILE",
    )
    mean_mode: str = option(
        "pooled",
        f"positions that mean averages over: {in_words(get_args(MeanMode))}",
        metavar="MODE",
        check=one_of(get_args(MeanMode), "mean mode"),
    )


@dataclass(frozen=True, kw_only=True)
class Screening(Group):
    """Measuring only the heads that estimates rank highest."""

    screen: float | None = option(
        None,
        "estimate all heads, and measure only this share of them, like 0.1, plus a random control set",
        metavar="SHARE",
        parse=decimal,
        check=_check_share,
    )
    screen_rule: str | None = option(
        None,
        lambda: f"gradient rule for the estimates: {in_words(SCREEN_RULES)}, each head's best rank (default: plain)",
        metavar="NAME",
        check=one_of(SCREEN_RULES, "screen rule"),
    )


def check_ranked(part: Part) -> None:
    """Raise `UserError` unless estimates are known to rank such parts (docs/explanation/estimates.md)."""
    if part.slot is not Slot.HEADS:
        raise UserError(
            f"screen can't rank {part.over}: measuring a third of them, by any gradient rule, misses more than 10% "
            f"of those that matter; use over {in_words(head_words())}, or leave screen out"
        )


def kinds_of(chosen: VariantSelection | Sequence[Variant]) -> list[str]:
    """The kinds of ablation among variants."""
    if isinstance(chosen, VariantSelection):
        return [chosen.kind]
    return sorted({ablation.kind for variant in chosen for ablation in variant.ablations})
