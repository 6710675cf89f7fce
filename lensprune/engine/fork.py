"""Run a prefix tree under many variants: each resumes from the clean model at its first changed layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import cache, partial
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int

from lensprune.ablation.reference import ReferenceActivations
from lensprune.ablation.variants import Variant
from lensprune.engine.attention import TreeAttention
from lensprune.engine.edits import ALL, LayerEdits, RowsAt, edits_by_layer, first_layer
from lensprune.engine.last_layer import TreeQueries, keys_and_values
from lensprune.engine.layers import LayerStack
from lensprune.engine.marks import Marks
from lensprune.engine.tree import PrefixTree
from lensprune.models.base import ModelFacts

__all__ = ["KeepKV", "fork_edits", "fork_variants", "run_edited"]

KeepKV = Callable[[Variant | None, int, torch.Tensor, torch.Tensor], None]
"""Called with variant (``None``: the clean model), layer, and that layer's keys and values [kv_head, tok, d_head]."""

Keep = Callable[[int, torch.Tensor, torch.Tensor], None]
T = TypeVar("T")


def fork_variants(
    stack: LayerStack,
    facts: ModelFacts,
    tree: PrefixTree,
    wanted: Int[torch.Tensor, " wanted"],
    variants: Sequence[Variant],
    reference: ReferenceActivations | None,
    keep_kv: KeepKV | None = None,
    marks: Marks | None = None,
) -> Generator[tuple[Variant, Float[torch.Tensor, "wanted d_model"]], None, None]:
    """Yield each variant with the residuals that leave its last layer, lowest first changed layer first.

    Args:
        wanted: flat indices of the tokens whose residuals to return, in ascending order.
        keep_kv: receives the clean model's keys and values up to the highest first changed layer, and each variant's
            above its own first changed layer; up to and including that layer they equal the clean model's. A layer
            that a variant replaces as a whole has none.
        marks: what the tree's tokens are marked with, for variants with positions.
    """
    run = _Pass(stack, facts, tree, wanted)
    at = None if marks is None else _rows_at(tree, marks, facts)

    def edits_of(variant: Variant) -> dict[int, LayerEdits]:
        return edits_by_layer([(variant, ALL)], reference, facts, at)

    yield from _forked(run, [(first_layer(v, stack.n_layers), v) for v in variants], edits_of, keep_kv)


def fork_edits(
    stack: LayerStack,
    facts: ModelFacts,
    tree: PrefixTree,
    wanted: Int[torch.Tensor, " wanted"],
    edits: Sequence[tuple[int, LayerEdits]],
) -> Iterator[tuple[int, Float[torch.Tensor, "wanted d_model"]]]:
    """As `fork_variants`, for edits of one layer each; yields each one's index."""
    run = _Pass(stack, facts, tree, wanted)
    yield from _forked(run, [(layer, i) for i, (layer, _) in enumerate(edits)], lambda i: dict([edits[i]]), None)


def run_edited(
    stack: LayerStack,
    facts: ModelFacts,
    tree: PrefixTree,
    wanted: Int[torch.Tensor, " wanted"],
    edits: dict[int, LayerEdits],
) -> Float[torch.Tensor, "wanted d_model"]:
    """The residuals that leave the last layer, with edits of any layers."""
    run = _Pass(stack, facts, tree, wanted)
    return run.resume(0, run.embedded, edits, None)


def _forked(
    run: _Pass, changes: Sequence[tuple[int, T]], edits_of: Callable[[T], dict[int, LayerEdits]], keep_kv: Any
) -> Iterator[tuple[T, Float[torch.Tensor, "wanted d_model"]]]:
    """Each change, given with its first changed layer, and its residuals."""
    n_layers = run.n_layers
    forks: dict[int, list[T]] = defaultdict(list)
    for layer, change in changes:
        forks[layer].append(change)
    hidden = run.embedded
    # Clean layers run only while a later fork needs their residuals, or the caller needs the last keys and values.
    last = max(forks)
    clean_layers = last + (keep_kv is not None)
    for layer in range(min(last + 1, n_layers)):
        starting = forks.get(layer, [])
        following = hidden
        run.save(bool(starting) and layer < clean_layers)
        if layer < clean_layers:
            keep = None if keep_kv is None else partial(keep_kv, None)
            following = run.layer(layer, hidden, None, keep)
        run.save(False)
        for change in starting:
            keep = None if keep_kv is None else partial(keep_kv, change)
            yield change, run.resume(layer, hidden, edits_of(change), keep)
        run.forget()
        hidden = following
    for change in forks.get(n_layers, []):
        yield change, hidden[0]


def _rows_at(tree: PrefixTree, marks: Marks, facts: ModelFacts) -> RowsAt:
    """The tree's tokens that a selector chooses, sent to the device once."""
    of_tokens = tree.marks

    @cache
    def rows(at: str) -> torch.Tensor | None:
        chosen = marks.chosen(of_tokens, at)
        return torch.tensor(chosen, device=facts.device) if chosen else None

    return lambda at, _: rows(at)


class _Pass:
    """Runs layers over one tree; the last one only for the wanted tokens.

    While `save` is on, a layer's attention result is kept and reused until `forget`.
    """

    def __init__(
        self, stack: LayerStack, facts: ModelFacts, tree: PrefixTree, wanted: Int[torch.Tensor, " wanted"]
    ) -> None:
        self._stack = stack
        self._wanted = wanted
        stack.refresh()
        self.batch, self.embedded = stack.begin(tree.input_ids(facts.device), tree.position_ids(facts.device))
        self._attention = TreeAttention(tree, facts.device)
        self._last = stack.n_layers - 1
        self._last_batch = self.batch.take(wanted, self._last)
        self._queries = TreeQueries(tree, wanted)
        # Keys and values of all tokens cost about a sixth of a layer; with many wanted tokens nothing is left to gain.
        self._narrow = 2 * len(wanted) < len(tree)

    @property
    def n_layers(self) -> int:
        return self._stack.n_layers

    def save(self, on: bool) -> None:
        self._attention.save = on

    def forget(self) -> None:
        self._attention.saved = self._queries.saved = None

    def resume(
        self, start: int, hidden: Float[torch.Tensor, "1 tok d_model"], edits: dict[int, LayerEdits], keep: Keep | None
    ) -> Float[torch.Tensor, "wanted d_model"]:
        """Run from the residual before a variant's first changed layer, reusing the clean attention result there."""
        saved = self._attention.saved, self._queries.saved
        for layer in range(start, self._stack.n_layers):
            hidden = self.layer(layer, hidden, edits.get(layer), None if layer == start else keep)
            self.forget()
        self._attention.saved, self._queries.saved = saved
        return hidden[0]

    def layer(
        self, layer: int, hidden: Float[torch.Tensor, "1 tok d_model"], edits: LayerEdits | None, keep: Keep | None
    ) -> Float[torch.Tensor, "1 tok d_model"]:
        """Residual after a layer; after the last one, of the wanted tokens only."""
        narrow = layer == self._last and self._narrow
        batch = self._last_batch if narrow else self.batch
        before = hidden[:, self._wanted] if narrow else hidden
        if narrow and edits is not None:
            edits = edits.among(self._wanted)
        after = before
        if edits is None or not edits.bypass:
            if narrow:
                after = self._last_layer(hidden, before, edits, keep)
            else:
                after = self._whole_layer(layer, hidden, edits, keep)
        if edits is not None:
            after = edits.contribute(before, after, batch.position_ids[0])
        return after[:, self._wanted] if layer == self._last and not narrow else after

    def _whole_layer(
        self, layer: int, hidden: torch.Tensor, edits: LayerEdits | None, keep: Keep | None
    ) -> torch.Tensor:
        attention = self._attention
        attention.keep_kv = None if keep is None else partial(keep, layer)
        after = self._stack.run_layer(layer, hidden, self.batch, attention, edits)
        attention.keep_kv = None
        return after

    def _last_layer(
        self, hidden: torch.Tensor, before: torch.Tensor, edits: LayerEdits | None, keep: Keep | None
    ) -> torch.Tensor:
        queries = self._queries
        if queries.saved is None or keep is not None:
            queries.keys_values = keys_and_values(self._stack, self._last, hidden, self.batch)
            if keep is not None:
                keep(self._last, *queries.keys_values)
        after = self._stack.run_layer(self._last, before, self._last_batch, queries, edits)
        queries.keys_values = None
        return after
