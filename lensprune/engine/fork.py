"""Run a prefix tree under many variants: each resumes from the clean model at its first changed layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from jaxtyping import Float

from lensprune.ablation.reference import ReferenceActivations
from lensprune.ablation.variants import Variant
from lensprune.engine.attention import TreeAttention
from lensprune.engine.edits import ALL, LayerEdits, edits_by_layer, first_layer
from lensprune.engine.layers import FlatBatch, LayerStack
from lensprune.engine.tree import PrefixTree
from lensprune.models.base import ModelFacts

__all__ = ["KeepKV", "fork_variants"]

KeepKV = Callable[[Variant | None, int, torch.Tensor, torch.Tensor], None]
"""Called with variant (``None``: the clean model), layer, and that layer's keys and values [kv_head, tok, d_head]."""


def fork_variants(
    stack: LayerStack,
    facts: ModelFacts,
    tree: PrefixTree,
    variants: Sequence[Variant],
    reference: ReferenceActivations | None,
    keep_kv: KeepKV | None = None,
) -> Iterator[tuple[Variant, Float[torch.Tensor, "tok d_model"]]]:
    """Yield each variant with the residuals that leave its last layer, lowest first changed layer first.

    `keep_kv` receives the clean model's keys and values up to the highest first changed layer, and each variant's
    above its own first changed layer; up to and including that layer they are the clean model's. A layer that a
    variant replaces as a whole has none.
    """
    n_layers = stack.n_layers
    forks: dict[int, list[Variant]] = defaultdict(list)
    for variant in variants:
        forks[first_layer(variant, n_layers)].append(variant)
    batch = stack.begin(tree.input_ids(facts.device), tree.position_ids(facts.device))
    attention = TreeAttention(tree, facts.device)
    hidden = batch.embedded
    # Clean layers run only while a later fork needs their residuals, or a caller the last one's keys and values.
    last = max(forks)
    clean_layers = last + (keep_kv is not None)
    for layer in range(min(last + 1, n_layers)):
        starting = forks.get(layer, [])
        following = hidden
        attention.save = bool(starting)
        if layer < clean_layers:
            attention.keep_kv = None if keep_kv is None else partial(keep_kv, None, layer)
            following = stack.run_layer(layer, hidden, batch, attention)
            attention.keep_kv = None
        attention.save = False
        for variant in starting:
            edits = edits_by_layer([(variant, ALL)], reference, facts)
            keep = None if keep_kv is None else partial(keep_kv, variant)
            yield variant, _run_from(stack, layer, hidden, batch, attention, edits, keep)
        attention.saved = None
        hidden = following
    for variant in forks.get(n_layers, []):
        yield variant, hidden[0]


def _run_from(
    stack: LayerStack,
    start: int,
    hidden: torch.Tensor,
    batch: FlatBatch,
    attention: TreeAttention,
    edits: dict[int, LayerEdits],
    keep_kv: Callable[[int, torch.Tensor, torch.Tensor], None] | None,
) -> Float[torch.Tensor, "tok d_model"]:
    saved = attention.saved
    positions = batch.position_ids[0]
    for layer in range(start, stack.n_layers):
        here = edits.get(layer)
        # Before the variant's first change the attention result is the clean one.
        attention.saved = saved if layer == start else None
        attention.keep_kv = None if keep_kv is None or layer == start else partial(keep_kv, layer)
        if here is not None and here.heads:
            attention.edit_z = lambda z, here=here: here.edit_z(z, positions)
        if here is None or not here.bypass:
            following = stack.run_layer(layer, hidden, batch, attention, here)
        else:
            following = hidden
        hidden = following if here is None else here.contribute(hidden, following, positions)
        attention.edit_z = None
    attention.saved = saved
    attention.keep_kv = None
    return hidden[0]
