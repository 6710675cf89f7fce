"""A choice of variants that can be made before the model is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lensprune.ablation.choices import check_allowed, check_source, default_kind, indexed_words, parts_over
from lensprune.ablation.enumeration import enumerate_variants, parse_indices
from lensprune.ablation.positions import ALL, positions_named
from lensprune.ablation.variants import CLEAN, Variant, check_names
from lensprune.errors import UserError
from lensprune.models.base import ModelFacts

__all__ = ["VariantSelection", "with_clean"]

_PLENTY = 10**6


@dataclass(frozen=True)
class VariantSelection:
    """One variant per component of a kind, as the command line chooses them, before the model is known.

    `over`: ``layers``, ``attention``, ``mlp``, ``heads``, ``kv-groups``, ``heads-and-groups``, or a registered
    component's word. `ablation`: ``None`` takes skip for layers and zero for everything else. `layers`, `heads` (or
    other indices within a layer): text like ``0,10,20-29``; ``None`` takes all. `at`: which tokens are changed, like
    ``last`` or ``-5:``; see `lensprune.ablation.positions.positions_named`. `source`: for ``cut``, which tokens those
    at `at` no longer attend to, in the same form.

    Raises:
        UserError: an unknown name, an invalid combination, or text that is not a list of numbers.

    Examples:
        >>> selection = lp.VariantSelection("heads", layers="0,2-3", heads="1")
        >>> [variant.name for variant in selection.resolve(lp.as_hooked_model(model).facts)]
        ['L0.H1.zero', 'L2.H1.zero', 'L3.H1.zero']
    """

    over: str = "layers"
    ablation: str | None = None
    layers: str | None = None
    heads: str | None = None
    at: str = ALL
    source: str | None = None

    def __post_init__(self) -> None:
        for part in parts_over(self.over):
            check_allowed(self.kind, part, f"{self.over} are")
        if self.heads is not None and self.over not in indexed_words():
            raise UserError(f"heads are given but the sweep is over {self.over}: use over {', '.join(indexed_words())}")
        positions_named(self.at)
        check_source(self.kind, self.at, self.source)
        for text, what in ((self.layers, "layer"), (self.heads, "head")):
            if text is not None:
                parse_indices(text, _PLENTY, what)

    @property
    def kind(self) -> str:
        """The ablation kind, with the default filled in."""
        return self.ablation or default_kind(self.over)

    def resolve(self, facts: ModelFacts) -> list[Variant]:
        """The variants in a model of this shape.

        Raises:
            UserError: a layer or head that the model lacks, with the range.
        """
        layers = None if self.layers is None else parse_indices(self.layers, facts.n_layers, "layer")
        part = parts_over(self.over)[0]
        heads = None
        if self.heads is not None and part.size is not None:
            heads = parse_indices(self.heads, part.size(facts), part.index_word)
        return enumerate_variants(facts, self.over, self.ablation, layers, heads, self.at, self.source)


def with_clean(variants: Sequence[Variant], facts: ModelFacts) -> tuple[Variant, ...]:
    """The clean model, then the variants, checked against the model.

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
