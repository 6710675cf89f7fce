"""A choice of variants that can be made before the model is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from lensprune.ablation.variants import (
    CLEAN,
    OVER,
    OVER_HEADS,
    AblationKind,
    Variant,
    check_names,
    enumerate_variants,
    parse_indices,
)
from lensprune.errors import UserError, unknown_name
from lensprune.models.base import ModelFacts

__all__ = ["VariantSelection", "with_clean"]

_PLENTY = 10**6


@dataclass(frozen=True)
class VariantSelection:
    """One variant for each part of a kind, as the command line asks for them.

    `over`: ``layers``, ``attention``, ``mlp``, ``heads``, ``kv-groups`` or ``heads-and-groups``. `ablation`: ``None``
    takes skip for layers and zero for everything else. `layers`, `heads`: text like ``0,10,20-29``; ``None`` takes all.

    Raises:
        UserError: an unknown name, a combination that means nothing, or text that is not a list of numbers.
    """

    over: str = "layers"
    ablation: str | None = None
    layers: str | None = None
    heads: str | None = None

    def __post_init__(self) -> None:
        if self.over not in OVER:
            raise unknown_name("value for over", self.over, OVER)
        if self.ablation is not None and self.ablation not in get_args(AblationKind):
            raise unknown_name("ablation", self.ablation, get_args(AblationKind))
        heads_swept = self.over in OVER_HEADS
        if heads_swept and self.ablation == "skip":
            raise UserError(
                f"skip bypasses a residual branch, and {self.over} are not one: use zero, mean, resample or optimal"
            )
        if self.heads is not None and not heads_swept:
            raise UserError(f"heads are given but the sweep is over {self.over}: use over {', '.join(OVER_HEADS)}")
        for text, what in ((self.layers, "layer"), (self.heads, "head")):
            if text is not None:
                parse_indices(text, _PLENTY, what)

    def resolve(self, facts: ModelFacts) -> list[Variant]:
        """The variants in a model of this shape.

        Raises:
            UserError: a layer or head that the model lacks, with the range.
        """
        layers = None if self.layers is None else parse_indices(self.layers, facts.n_layers, "layer")
        size, what = (facts.n_key_value_heads, "kv-group") if self.over == "kv-groups" else (facts.n_heads, "head")
        heads = None if self.heads is None else parse_indices(self.heads, size, what)
        return enumerate_variants(facts, self.over, self.ablation, layers, heads)


def with_clean(variants: Sequence[Variant], facts: ModelFacts) -> tuple[Variant, ...]:
    """The variants behind the clean model, checked against the model.

    Raises:
        UserError: none at all, a name used twice, a variant that changes nothing, or a part that the model lacks.
    """
    changed = [variant for variant in variants if not (variant.is_clean and variant.name == CLEAN.name)]
    if not changed:
        raise UserError("there are no variants to sweep over: give at least one")
    for variant in changed:
        if variant.is_clean:
            raise UserError(
                f"variant {variant.name!r} changes nothing: only {CLEAN.name!r} may, and it is always included"
            )
        variant.check(facts)
    check_names([CLEAN, *changed])
    return (CLEAN, *changed)
