"""The variants that a sweep runs over: every layer, branch, head or group, ranges of layers, ends of the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

from lensprune.ablation.choices import (
    default_kind,
    indexed_words,
    parts_over,
)
from lensprune.ablation.components import (
    HEADS_AND_GROUPS,
    Layer,
    Part,
    check_component,
    part_named,
)
from lensprune.ablation.positions import ALL
from lensprune.ablation.variants import Ablation, Variant
from lensprune.errors import UserError, unknown_name
from lensprune.models.base import AnyModel, ModelFacts

__all__ = [
    "ModelOrFacts",
    "cumulative",
    "each_attention",
    "each_head",
    "each_head_and_group",
    "each_kv_group",
    "each_layer",
    "each_mlp",
    "enumerate_variants",
    "layer_range",
    "parse_indices",
]


ModelOrFacts: TypeAlias = AnyModel | ModelFacts


def _facts(model: ModelOrFacts) -> ModelFacts:
    if isinstance(model, ModelFacts):
        return model
    from lensprune.models import as_hooked_model

    return as_hooked_model(model).facts


def _each(
    model: ModelOrFacts,
    part: Part,
    kind: str,
    layers: Sequence[int] | None,
    indices: Sequence[int] | None = None,
    at: str = ALL,
    source: str | None = None,
) -> list[Variant]:
    facts = _facts(model)
    variants = []
    for layer in range(facts.n_layers) if layers is None else layers:
        check_component(Layer(layer), facts)
        for component in part.each(facts, layer, indices):
            ablation = Ablation(component, kind, at, source)
            variants.append(Variant(ablation.name, (ablation,)))
    return variants


def each_layer(
    model: ModelOrFacts, kind: str = "skip", layers: Sequence[int] | None = None, *, at: str = ALL
) -> list[Variant]:
    """Make one variant per layer (paper §3: one layer removed at a time).

    Args:
        model: a loaded model, or its `ModelFacts`.
        kind: the ablation kind.
        layers: only these layers, 0-based; ``None`` takes all.
        at: which tokens are changed, like ``last`` or ``-5:``; see `lensprune.ablation.positions.positions_named`.

    Returns:
        Variants named like ``L3.skip``, in order of depth.

    Raises:
        UserError: a layer that the model lacks, or an unknown kind.

    Examples:
        >>> [variant.name for variant in lp.each_layer(model, layers=[0, 2])]
        ['L0.skip', 'L2.skip']
    """
    return _each(model, part_named("layer"), kind, layers, at=at)


def each_attention(
    model: ModelOrFacts,
    kind: str = "zero",
    layers: Sequence[int] | None = None,
    *,
    at: str = ALL,
    source: str | None = None,
) -> list[Variant]:
    """Make one variant per attention branch.

    Args:
        model: a loaded model, or its `ModelFacts`.
        kind: the ablation kind.
        layers: only these layers, 0-based; ``None`` takes all.
        at: which tokens are changed, like ``last`` or ``-5:``; see `lensprune.ablation.positions.positions_named`.
        source: for ``cut``, which tokens those at `at` no longer attend to, in the same form.

    Returns:
        Variants named like ``L3.attention.zero``, in order of depth.

    Raises:
        UserError: a layer that the model lacks, or an unknown kind.

    Examples:
        >>> lp.each_attention(model, "mean")[3].name
        'L3.attention.mean'
    """
    return _each(model, part_named("attention"), kind, layers, at=at, source=source)


def each_mlp(
    model: ModelOrFacts, kind: str = "zero", layers: Sequence[int] | None = None, *, at: str = ALL
) -> list[Variant]:
    """Make one variant per MLP branch.

    Args:
        model: a loaded model, or its `ModelFacts`.
        kind: the ablation kind.
        layers: only these layers, 0-based; ``None`` takes all.
        at: which tokens are changed, like ``last`` or ``-5:``; see `lensprune.ablation.positions.positions_named`.

    Returns:
        Variants named like ``L3.mlp.zero``, in order of depth.

    Raises:
        UserError: a layer that the model lacks, or an unknown kind.

    Examples:
        >>> lp.each_mlp(model)[0].name
        'L0.mlp.zero'
    """
    return _each(model, part_named("mlp"), kind, layers, at=at)


def each_head(
    model: ModelOrFacts,
    kind: str = "zero",
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    *,
    at: str = ALL,
    source: str | None = None,
) -> list[Variant]:
    """Make one variant per query head.

    Args:
        model: a loaded model, or its `ModelFacts`.
        kind: the ablation kind.
        layers: only these layers, 0-based; ``None`` takes all.
        heads: only these heads of each layer, 0-based; ``None`` takes all.
        at: which tokens are changed, like ``last`` or ``-5:``; see `lensprune.ablation.positions.positions_named`.
        source: for ``cut``, which tokens those at `at` no longer attend to, in the same form.

    Returns:
        Variants named like ``L3.H1.zero``, layer by layer.

    Raises:
        UserError: a layer or head that the model lacks, or a kind that heads don't allow.

    Examples:
        >>> len(lp.each_head(model)), lp.each_head(model, layers=[3], heads=[1])[0].name
        (16, 'L3.H1.zero')
        >>> lp.each_head(model, layers=[3], heads=[1], at="last")[0].name
        'L3.H1@last.zero'
        >>> lp.each_head(model, "cut", layers=[3], heads=[1], at="last", source="0")[0].name
        'L3.H1@last<-0.cut'
    """
    return _each(model, part_named("head"), kind, layers, heads, at=at, source=source)


def each_kv_group(
    model: ModelOrFacts,
    kind: str = "zero",
    layers: Sequence[int] | None = None,
    groups: Sequence[int] | None = None,
    *,
    at: str = ALL,
    source: str | None = None,
) -> list[Variant]:
    """Make one variant per key/value group, all its query heads together.

    Args:
        model: a loaded model, or its `ModelFacts`.
        kind: the ablation kind.
        layers: only these layers, 0-based; ``None`` takes all.
        groups: only these groups of each layer, 0-based; ``None`` takes all.
        at: which tokens are changed, like ``last`` or ``-5:``; see `lensprune.ablation.positions.positions_named`.
        source: for ``cut``, which tokens those at `at` no longer attend to, in the same form.

    Returns:
        Variants named like ``L3.KV1.zero``, layer by layer.

    Raises:
        UserError: a layer or group that the model lacks, or a kind that groups don't allow.

    Examples:
        >>> [variant.name for variant in lp.each_kv_group(model, layers=[3])]
        ['L3.KV0.zero', 'L3.KV1.zero']
    """
    return _each(model, part_named("kv_group"), kind, layers, groups, at=at, source=source)


def each_head_and_group(
    model: ModelOrFacts,
    kind: str = "zero",
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    *,
    at: str = ALL,
    source: str | None = None,
) -> list[Variant]:
    """Make one variant per query head, and one per key/value group that one of these heads belongs to.

    Args:
        model: a loaded model, or its `ModelFacts`.
        kind: the ablation kind.
        layers: only these layers, 0-based; ``None`` takes all.
        heads: only these query heads of each layer, 0-based; ``None`` takes all.
        at: which tokens are changed, like ``last`` or ``-5:``; see `lensprune.ablation.positions.positions_named`.
        source: for ``cut``, which tokens those at `at` no longer attend to, in the same form.

    Returns:
        The heads' variants, then the groups'.

    Raises:
        UserError: a layer or head that the model lacks, or a kind that heads don't allow.

    Examples:
        >>> [variant.name for variant in lp.each_head_and_group(model, layers=[3], heads=[0, 1])]
        ['L3.H0.zero', 'L3.H1.zero', 'L3.KV0.zero']
    """
    facts = _facts(model)
    groups = None if heads is None else sorted({head // facts.heads_per_group for head in heads})
    return [
        *each_head(facts, kind, layers, heads, at=at, source=source),
        *each_kv_group(facts, kind, layers, groups, at=at, source=source),
    ]


def layer_range(model: ModelOrFacts, first: int, last: int, kind: str = "skip") -> Variant:
    """Ablate layers `first` to `last`, both included, in one variant named ``L{first}-{last}.{kind}``.

    Args:
        model: a loaded model, or its `ModelFacts`.
        first, last: layers, 0-based.
        kind: the ablation kind.

    Raises:
        UserError: an empty range, a layer that the model lacks, or an unknown kind.

    Examples:
        >>> lp.layer_range(model, 1, 2).name
        'L1-2.skip'
    """
    facts = _facts(model)
    if first > last:
        raise UserError(f"layer range {first}-{last} is empty: the first layer must not exceed the last")
    ablations = tuple(Ablation(Layer(layer), kind) for layer in range(first, last + 1))
    name = ablations[0].name if first == last else f"L{first}-{last}.{kind}"
    variant = Variant(name, ablations)
    variant.check(facts)
    return variant


def cumulative(
    model: ModelOrFacts, kind: str = "skip", start: Literal["bottom", "top"] = "top", at_most: int | None = None
) -> list[Variant]:
    """Make variants that remove 1, 2, … `at_most` layers from one end of the model.

    Args:
        model: a loaded model, or its `ModelFacts`.
        kind: the ablation kind.
        start: ``bottom`` removes the first layers, ``top`` the last.
        at_most: the number of layers that the last variant removes; ``None`` takes all.

    Raises:
        UserError: another `start`, or a number of layers that the model lacks.

    Examples:
        >>> [variant.name for variant in lp.cumulative(model, start="top", at_most=2)]
        ['L3.skip', 'L2-3.skip']
    """
    facts = _facts(model)
    if start not in ("bottom", "top"):
        raise unknown_name("end of the model", str(start), ["bottom", "top"])
    last = facts.n_layers - 1
    count = facts.n_layers if at_most is None else at_most
    if not 1 <= count <= facts.n_layers:
        raise UserError(
            f"cannot remove {count} layers: {facts.name} has {facts.n_layers}, choose 1 to {facts.n_layers}"
        )
    if start == "bottom":
        return [layer_range(facts, 0, n - 1, kind) for n in range(1, count + 1)]
    return [layer_range(facts, last - n + 1, last, kind) for n in range(1, count + 1)]


def enumerate_variants(
    model: ModelOrFacts,
    over: str,
    kind: str | None = None,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    at: str = ALL,
    source: str | None = None,
) -> list[Variant]:
    """The variants of ``--over``: one of `over_words`.

    Args:
        kind: the ablation; ``None`` takes skip for layers and zero for everything else, or the part's default.
        layers: only these layers.
        heads: only these heads, groups or other indices within a layer; only for `indexed_words`.
        at: which tokens are changed.
        source: which tokens those at `at` no longer attend to; only for kinds that cut attention edges.
    """
    kind = kind or default_kind(over)
    if heads is not None and over not in indexed_words():
        raise UserError(f"heads are given but the sweep is over {over}: use over {', '.join(indexed_words())}")
    if over == HEADS_AND_GROUPS:
        return each_head_and_group(model, kind, layers, heads, at=at, source=source)
    [part] = parts_over(over)
    return _each(model, part, kind, layers, heads, at=at, source=source)


def parse_indices(text: str, size: int, what: str = "layer") -> list[int]:
    """Parse ``"0,10,20-29"`` into a sorted list of distinct indices less than `size`.

    Raises:
        UserError: not a list of numbers and ranges, or an index out of range.
    """
    indices: set[int] = set()
    for part in text.split(","):
        low, dash, high = part.strip().partition("-")
        if not low.isdecimal() or (dash and not high.isdecimal()):
            raise UserError(
                f"cannot read {what}s {text!r} at {part.strip()!r}: write numbers and ranges like 0,10,20-29"
            )
        first, last = int(low), int(high) if dash else int(low)
        if first > last:
            raise UserError(f"{what} range {part.strip()} is empty: the first must not exceed the last")
        if last >= size:
            raise UserError(f"{what} {last} is out of range: there are {what}s 0 to {size - 1}")
        indices.update(range(first, last + 1))
    return sorted(indices)
