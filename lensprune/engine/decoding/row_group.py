"""Rows that began together: their keys and values, and what they contribute to a decode step.

All rows of a group have as many generated tokens, so their buffers end at the same column and nothing is masked for
the sake of other groups. A step computes the layers over the tokens of all groups at once; only attention is computed
group by group.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Int

from lensprune.ablation.positions import positions_named
from lensprune.ablation.reference import ReferenceActivations
from lensprune.ablation.variants import Variant
from lensprune.engine.decoding.checkpoint import Array, Saved, numbered
from lensprune.engine.decoding.groups import kv_bytes_per_token
from lensprune.engine.decoding.kv import CleanKV, HistoryKV, PromptKV, VariantKV, columns_for
from lensprune.engine.decoding.rows import RowTable
from lensprune.engine.decoding.shared_histories import SharedHistories, Split
from lensprune.engine.decoding.step_attention import DecodeAttention
from lensprune.engine.decoding.step_tables import DivergedRows, LayerTokens
from lensprune.engine.decoding.steps import Step
from lensprune.engine.edits import Rows, edits_by_layer
from lensprune.models.base import ModelFacts

__all__ = ["RowGroup"]

KEEP_DEAD = 0.25
"""Buffers are compacted once more than this share of their rows has finished."""


class RowGroup:
    """Rows of consecutive variants, from their prompts' pass to their last token.

    First, `keep` receives the keys and values of the variants' prompts, and `prompts_done` follows. Each step then is
    `begin` and `send`, and `tokens` for each layer.
    """

    def __init__(
        self,
        table: RowTable,
        variants: range,
        rows: Int[np.ndarray, " row"],
        clean: CleanKV,
        reference: ReferenceActivations | None,
        facts: ModelFacts,
    ) -> None:
        """`rows`: those of the variants that are wanted; `clean`: the clean model's prompts, at the layers at which the
        variants may need them."""
        self.variants = variants
        self.step = -1
        """Number of the newest generated token; −1 before the first."""
        self._table, self._clean, self._reference, self._facts = table, clean, reference, facts
        self._device = torch.device(facts.device)
        self._number = {table.variants[v].name: v for v in variants}
        present = [int(v) for v in np.unique(table.variant_of(rows))]
        self._holding = [[v for v in present if table.differs_below(v, layer)] for layer in range(table.n_layers)]
        self._diverged: dict[int, VariantKV] = {}
        # Rows that have a place in the buffers, and each row's place at each layer.
        self._dense = rows
        self._prompts: dict[int, list[Int[torch.Tensor, " row"]]] = {}
        """Of each variant's rows, by block; while prompts run."""
        self._diverged_place: dict[int, np.ndarray] = {}
        self._histories = SharedHistories(table.prompt_of(np.arange(len(table))))

    def keep(self, variant: Variant, layer: int, part: PromptKV) -> None:
        """Keep keys and values of a variant's prompts."""
        # Straight into the buffers: collecting them first would hold all variants' prompts twice.
        table, holding, number = self._table, self._holding[layer], self._number[variant.name]
        if number not in holding:
            # No row of it runs.
            return
        if not self._prompts:
            self._prompts = self._prompts_by_block()
        if layer not in self._diverged:
            sizes = self._n_rows(holding)
            self._diverged[layer] = VariantKV.empty(part, len(holding), sizes, table.prompts.widths, table.most)
        place = holding.index(number)
        self._diverged[layer].fill(place, part, self._n_rows(holding[:place]), self._prompts[number])

    def _prompts_by_block(self) -> dict[int, list[Int[torch.Tensor, " row"]]]:
        table, prompts = self._table, {}
        for variant in self.variants:
            mine = self._dense[table.variant_of(self._dense) == variant]
            prompt_of, block_of = table.prompt_of(mine), table.block_of(mine)
            blocks = [prompt_of[block_of == block] for block in range(len(table.prompts.widths))]
            prompts[variant] = [torch.from_numpy(block).to(self._device) for block in blocks]
        return prompts

    def _n_rows(self, variants: Sequence[int]) -> list[int]:
        """How many rows variants have in each block."""
        n_blocks = len(self._table.prompts.widths)
        return [sum(len(self._prompts[variant][block]) for variant in variants) for block in range(n_blocks)]

    def prompts_done(self) -> None:
        """All prompts have run."""
        self.attention = DecodeAttention(self._table.prompts, self._clean)
        self.attention.diverged.update(self._diverged)
        self._prompts = {}
        self._index_diverged()

    def state(self) -> Iterator[tuple[str, Array]]:
        """What `restore` needs, between two steps. Rows that have ended and still have a place are part of it: without
        them, the rest might be rounded differently."""
        attention, n_written = self.attention, self.step + 1
        yield "step", np.array([self.step, self._histories.size])
        yield "rows", self._dense
        yield "history_of_row", self._histories.of_row[self._dense]
        for layer, diverged in attention.diverged.items():
            yield from numbered(f"diverged.{layer}", diverged.state(n_written))
        for layer, history in attention.histories.items():
            yield from numbered(f"history.{layer}", history.state(n_written))

    def restore(self, saved: Saved, prefix: str) -> None:
        """Take a state over in place of the prompts' pass; `prefix` is that of its names in `saved`."""
        table = self._table
        self.step, self._histories.size = map(int, saved.array(f"{prefix}.step"))
        self._histories.of_row[self._dense] = saved.array(f"{prefix}.history_of_row")
        for layer in range(table.n_layers):
            if tensors := saved.tensors(f"{prefix}.diverged.{layer}", self._device):
                self._diverged[layer] = VariantKV.restored(tensors, table.prompts.widths, table.most)
        self.prompts_done()
        for layer in range(table.n_layers):
            if tensors := saved.tensors(f"{prefix}.history.{layer}", self._device):
                self.attention.histories[layer] = HistoryKV.restored(tensors, table.most)

    def _index_diverged(self) -> None:
        """Work out which rows have a place in each layer's buffers, and group them by variant and shared prefix."""
        table, attention = self._table, self.attention
        memo: dict[tuple[int, ...], tuple[np.ndarray, DivergedRows]] = {}
        for layer in attention.diverged:
            held = tuple(v for v in self._held_variants() if table.differs_below(v, layer))
            if held not in memo:
                mine = self._dense[np.isin(table.variant_of(self._dense), held)]
                mine = mine[np.argsort(table.block_of(mine), kind="stable")]
                place = np.full(len(table), -1)
                place[mine] = np.arange(len(mine))
                variant = np.searchsorted(held, table.variant_of(mine))
                prompt = table.prompt_of(mine)
                memo[held] = place, DivergedRows.of(table.prompts, prompt, variant, table.most, self._device)
            self._diverged_place[layer], attention.diverged_rows[layer] = memo[held]

    def _held_variants(self) -> list[int]:
        return [int(v) for v in np.unique(self._table.variant_of(self._dense))]

    def begin(self, rows: np.ndarray, tokens: np.ndarray) -> None:
        """Begin a step: `tokens` are the newest ones of `rows`, which are all rows that still run."""
        self.step += 1
        split = self._histories.advance(rows, tokens)
        self.now = Step.of(rows, self._table.first_of(rows), self._histories.of_row[rows], self._table.n_layers)
        self._make_room(split)
        variants, starts = np.unique(self._table.variant_of(rows), return_index=True)
        spans = [slice(int(a), int(b)) for a, b in zip(starts, [*starts[1:], len(rows)], strict=True)]
        assigned = [(self._table.variants[v], span) for v, span in zip(variants, spans, strict=True)]
        self.edits = edits_by_layer(assigned, self._reference, self._facts, self._rows_at)
        """Edits of the rows, by layer; rows are counted from the group's first one."""

    def _rows_at(self, at: str, rows: Rows) -> Rows | None:
        """The rows, if the selector chooses their newest tokens; all have the same number of generated tokens."""
        return rows if positions_named(at).in_generated(self.step) else None

    @property
    def positions(self) -> Int[np.ndarray, " row"]:
        """Of the rows' newest tokens."""
        return self._table.prompts.lengths.numpy()[self._table.prompt_of(self.now.rows)] + self.step

    def computed(self, layer: int) -> Bool[np.ndarray, " row"]:
        """Which of the rows that are changed at the layer or below are computed there: those whose contribution is not
        replaced as a whole."""
        is_computed = np.ones(self.now.n_rows[layer], dtype=bool)
        edits = self.edits.get(layer)
        for edit in edits.replaced if edits is not None else []:
            is_computed[edit.rows] = False
        return is_computed

    def arrays(self) -> list[list[np.ndarray]]:
        """Index arrays that a step needs on the device; see `send`."""
        step, n_layers = self.now, self._table.n_layers
        prompts = self._table.prompt_of(step.rows[step.sample])
        # Layers that need the same number of histories need the same ones.
        sizes = {int(step.n_histories[layer]): step.needed(layer) for layer in range(n_layers)}
        self._sizes = [size for size in sizes if size]
        of_histories = [self.attention.arrays_of(prompts[sizes[size]]) for size in self._sizes]
        return [*map(self._layer_arrays, range(n_layers)), *of_histories, [places for _, places in self._copied]]

    def _layer_arrays(self, layer: int) -> list[np.ndarray]:
        """The fields of `LayerTokens`, pairs one by one."""
        step = self.now
        rows = np.flatnonzero(self.computed(layer))
        differing = rows[self._table.first_of(step.rows[rows]) < layer]
        place = self._diverged_place[layer][step.rows[differing]] if len(differing) else differing
        arrays = [
            place,
            step.history_of[rows[len(differing) :]] - step.needed(layer).start,
            self.attention.histories[layer].places if step.n_histories[layer] else place[:0],
        ]
        return arrays + (self._for_kernel(layer, place) if len(place) and self.attention.by_kernel else [])

    def _for_kernel(self, layer: int, place: np.ndarray) -> list[np.ndarray]:
        """`queries` and then `blocks` of `LayerTokens`, of diverged rows given by their places in a layer's buffers."""
        diverged, arrays = self.attention.diverged[layer], []
        row_at = np.zeros(len(diverged), dtype=np.int64)
        row_at[place] = np.arange(len(place))
        for index in self.attention.diverged_rows[layer].queries:
            arrays.append(row_at[index])
        for _, span in diverged.spans():
            inside = np.flatnonzero((place >= span.start) & (place < span.stop))
            arrays += [inside, place[inside] - span.start]
        return arrays

    def send(self, sent: Sequence[Sequence[torch.Tensor]]) -> None:
        """Take over the `arrays`, now on the device, and copy what histories that split have in common."""
        n_layers, (*sent, copied) = self._table.n_layers, sent
        for (history, _), places in zip(self._copied, copied, strict=True):
            history.copy(places, self.step)
        self.tokens = []
        """By layer."""
        n_prefixes = len(self._table.prompts.prefixes)
        for layer, (diverged, starting, histories, *rest) in enumerate(sent[:n_layers]):
            queries, blocks = rest[:n_prefixes], rest[n_prefixes:]
            pairs = list(zip(blocks[::2], blocks[1::2], strict=True))
            self.tokens.append(LayerTokens(layer, diverged, starting, histories, pairs, queries))
        self.attention.begin_step(self.step, dict(zip(self._sizes, sent[n_layers:], strict=True)))

    def kv_bytes(self, running: np.ndarray) -> int:
        """Keys and values in bytes, without the clean model's prompts, as the `running` rows take one more token."""
        table, step = self._table, self.step + 1
        columns = columns_for(step, table.most)
        variants = table.variant_of(self._dense)
        widths = np.array(table.prompts.widths)[table.block_of(self._dense)]
        tokens = int((table.own_layers[variants] * (widths + columns)).sum())
        tokens += int(table.own_layers[np.unique(variants)].sum()) * table.prompts.shared_tokens
        history = self._histories.of_row[running] if step else table.prompt_of(running)
        # A history is needed up to the layer that the last of its rows changes.
        deepest = np.zeros(history.max() + 1, dtype=np.int64)
        np.maximum.at(deepest, history, np.minimum(table.first_of(running) + 1, table.n_layers))
        return kv_bytes_per_token(self._facts) * (tokens + int(deepest.sum()) * columns)

    def _make_room(self, split: Split) -> None:
        """Make room for one more token: drop finished rows, and choose places for histories that split; see `send`."""
        attention, step = self.attention, self.now
        alive = np.isin(self._dense, step.rows)
        if alive.mean() < 1 - KEEP_DEAD:
            self._drop_rows(alive, self.step)
        for diverged in attention.diverged.values():
            diverged.make_room(self.step)
        for layer in range(int((step.n_histories > 0).sum())):
            if layer not in attention.histories:
                attention.histories[layer] = HistoryKV(attention.clean[layer].rest[0], self._table.most)
        needed = [
            (history, history.need(step.histories[step.needed(layer)], split, self.step))
            for layer, history in attention.histories.items()
        ]
        self._copied = [(history, places) for history, places in needed if places is not None]

    def compact(self, running: np.ndarray) -> None:
        """Free the memory of all rows that don't run any more, between two steps."""
        alive = np.isin(self._dense, running)
        if not alive.all():
            self._drop_rows(alive, self.step + 1)

    def _drop_rows(self, alive: np.ndarray, n_written: int) -> None:
        """Keep the `alive` rows of every buffer, with their first `n_written` generated tokens."""
        before = self._held_variants()
        dense = self._dense[alive]
        variants = np.unique(self._table.variant_of(dense))
        for layer, diverged in list(self.attention.diverged.items()):
            places = self._diverged_place[layer][dense]
            held = [v for v in before if self._table.differs_below(v, layer)]
            kept = np.flatnonzero(np.isin(held, variants))
            if not len(kept):
                del self.attention.diverged[layer]
                continue
            rows = torch.from_numpy(np.sort(places[places >= 0])).to(self._device)
            diverged.keep(rows, torch.from_numpy(kept).to(self._device), n_written)
        self._dense = dense
        self._index_diverged()
