"""Decoding of a group of variants on a set of prompts, all rows (variant × request) in one step.

Each step runs the layers once. The tokens of a layer's call are the rows whose variant is changed at or below that
layer, and one token for each history (prompt and generated tokens) that a row has whose variant is changed above it:
what equals the clean model is computed once for all variants.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from lensprune.ablation.positions import positions_named
from lensprune.ablation.reference import ReferenceActivations
from lensprune.ablation.variants import Variant
from lensprune.engine.decoding.groups import kv_bytes_per_token
from lensprune.engine.decoding.kv import CleanKV, HistoryKV, PromptKV, VariantKV, columns_for
from lensprune.engine.decoding.prompts import PromptSet
from lensprune.engine.decoding.shared_histories import SharedHistories, Split
from lensprune.engine.decoding.step_attention import DecodeAttention, DivergedRows, LayerTokens, tables_by_group
from lensprune.engine.decoding.steps import LayerIndex, Step, sent_at_once
from lensprune.engine.edits import LayerEdits, Rows, edits_by_layer, first_layer
from lensprune.engine.fork import fork_variants
from lensprune.engine.generating import Generation, Generator, RowWork
from lensprune.engine.layers import FlatBatch, LayerStack
from lensprune.engine.marks import Marks, token_of
from lensprune.engine.memory import UNEMBED_ROWS
from lensprune.engine.scoring import finite_rows
from lensprune.models.base import HookedModel
from lensprune.precision import widened
from lensprune.protocols.requests import GenerateRequest, GenerateResponse

__all__ = ["GroupDecoder"]

KEEP_DEAD = 0.25
"""Buffers are compacted once more than this share of their rows has finished."""

WORK_STEPS = 8
"""Decode steps between reports of progress."""


class GroupDecoder:
    """Decodes `requests` under `variants`, all at once.

    Rows are numbered variant by variant, lowest first changed layer first; `prompts` holds the requests' contexts.
    With `marks`, which variants with positions need, the contexts are `marked`.
    Where keys and values would pass `max_kv_bytes`, the variants that hold the most are `postponed`, and their rows
    that still run are given up; one variant goes on whatever it needs.
    """

    def __init__(
        self,
        model: HookedModel,
        stack: LayerStack,
        variants: Sequence[Variant],
        requests: Sequence[GenerateRequest],
        reference: ReferenceActivations | None,
        marks: Marks | None = None,
        max_kv_bytes: int | None = None,
    ) -> None:
        self.postponed: list[int] = []
        """Variants, numbered as given, some of whose rows got no answer."""
        self.peak_kv_bytes = 0
        self._max_kv_bytes = max_kv_bytes
        self._model, self._stack, self._reference, self._marks = model, stack, reference, marks
        self._device = model.facts.device
        n_layers = stack.n_layers
        # Keep each one's index in the caller's lists.
        order = sorted(range(len(variants)), key=lambda i: first_layer(variants[i], n_layers))
        self._variants = [variants[i] for i in order]
        self._requests = [replace(r, context_ids=tuple(map(token_of, r.context_ids))) for r in requests]
        self._prompts = PromptSet.of([r.context_ids for r in requests])
        place = {prompt: i for i, prompt in enumerate(self._prompts.prompts)}
        prompt_of = np.array([place[r.context_ids] for r in requests])
        firsts = np.array([first_layer(v, n_layers) for v in self._variants])
        n_requests = len(requests)
        self._variant_of = np.repeat(np.arange(len(order)), n_requests)
        self._prompt_of = np.tile(prompt_of, len(order))
        self._first = np.repeat(firsts, n_requests)
        self._place = [(order[v], r) for v in range(len(order)) for r in range(n_requests)]
        self._replaces = [{a.component.layer for a in v.ablations if a.replaces_block} for v in self._variants]
        self._histories = SharedHistories(self._prompt_of)
        # Rows that have a place in the buffers, and each row's place at each layer.
        self._dense = np.arange(len(self._place))
        self._diverged_place: dict[int, np.ndarray] = {}
        self._most = max(request.max_new_tokens for request in requests)
        self._order = order
        self._own_layers = np.array(
            [sum(self._differs_below(v, layer) for layer in range(n_layers)) for v in range(len(order))]
        )

    def run(
        self, on_work: Callable[[int, float], None] = lambda variant, rows: None
    ) -> Iterator[tuple[int, int, GenerateResponse]]:
        """Yield (variant, request, response), numbered as given, in the order in which rows finish.

        Args:
            on_work: called with a variant, numbered as given, as a `WorkCallback` is with its name.
        """
        generator = Generator(self._model)
        generations = [generator.start(self._requests[request]) for _, request in self._place]
        rows = np.arange(len(generations))
        hidden = self._prefill()
        # What the prompts share is shared by their rows.
        n_tokens = len(self._prompts.tree) / len(self._requests)
        work = RowWork([n_tokens] * len(rows), [self._requests[request].max_new_tokens for _, request in self._place])
        done = np.bincount(self._variant_of, work.prompts)
        while True:
            if self._step % WORK_STEPS == -1 % WORK_STEPS:
                self._report(done, on_work)
            tokens, finite = self._choose(hidden, generator, [generations[row] for row in rows])
            running, ended_at = np.ones(len(rows), dtype=bool), np.zeros(len(rows))
            for i, row in enumerate(rows):
                response = generations[row].add(int(tokens[i]), finite=bool(finite[i]))
                if response is None:
                    tokens[i] = generations[row].last
                else:
                    running[i], ended_at[i] = False, len(generations[row])
                    yield *self._place[row], response
            done += np.bincount(self._variant_of[rows], work.step(rows, ended_at), len(done))
            rows, tokens = rows[running], tokens[running]
            if not len(rows):
                self._report(done, on_work)
                return
            kept = self._within_budget(rows)
            rows, tokens = rows[kept], tokens[kept]
            hidden = self._advance(rows, tokens)

    def _report(self, done: np.ndarray, on_work: Callable[[int, float], None]) -> None:
        """Report what is `done` of each variant's rows, and begin anew."""
        for variant in np.flatnonzero(done):
            on_work(self._order[variant], float(done[variant]))
        done[:] = 0

    def forced(self, tokens: Sequence[int], n_prefilled: int = 1) -> Float[torch.Tensor, "variant scored"]:
        """Log-probabilities (nats) around the end of the one request's prompt: of its last tokens and of the first of
        `tokens`, `n_prefilled` in all, from the pass over the prompt, and of the rest of `tokens`, decoded one by one
        whatever is likely."""
        prompt = self._requests[0].context_ids
        wanted = torch.arange(len(prompt) - n_prefilled, len(prompt), device=self._device)
        hidden_of = self._run_prompts(wanted)
        targets = torch.tensor([*prompt[len(prompt) - n_prefilled + 1 :], tokens[0]], device=self._device)[:, None]
        prefilled = [
            widened(self._stack.logits(hidden_of[v.name])).log_softmax(-1).gather(1, targets)[:, 0]
            for v in self._variants
        ]
        scores, rows = [torch.stack(prefilled)], np.arange(len(self._place))
        for before, token in pairwise(tokens):
            hidden = self._advance(rows, np.full(len(rows), before))
            scores.append(widened(self._stack.logits(hidden)).log_softmax(-1)[:, token, None])
        return torch.cat(scores, 1)[np.argsort([variant for variant, _ in self._place])]

    def _choose(
        self,
        hidden: Float[torch.Tensor, "row d_model"],
        generator: Generator,
        rows: Sequence[Generation],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Next token of each row, and whether its logits are finite."""
        tokens, finite = [], []
        for begin in range(0, len(hidden), UNEMBED_ROWS):
            logits = self._stack.logits(hidden[begin : begin + UNEMBED_ROWS])
            tokens.append(generator.choose(logits, rows[begin : begin + UNEMBED_ROWS]))
            finite.append(finite_rows(logits))
        return torch.cat(tokens).cpu().numpy(), torch.cat(finite).cpu().numpy()

    def _prefill(self) -> Float[torch.Tensor, "row d_model"]:
        """Run all prompts and keep keys and values; returns the residual of each row's last prompt token."""
        hidden_of = self._run_prompts(self._prompts.last_token.to(self._device))
        prompt_of = torch.from_numpy(self._prompt_of[: len(self._requests)]).to(self._device)
        return torch.cat([hidden_of[v.name][prompt_of] for v in self._variants])

    def _run_prompts(self, wanted: Int[torch.Tensor, " wanted"]) -> dict[str, Float[torch.Tensor, "wanted d_model"]]:
        """Run all prompts and keep keys and values; returns each variant's residuals of the `wanted` flat tokens."""
        prompts, n_layers = self._prompts, self._stack.n_layers
        clean: CleanKV = {}
        diverged: dict[int, VariantKV] = {}
        # Padded prompts are taken from every layer of every variant.
        on_device = replace(prompts, rest=prompts.rest.to(self._device), real=prompts.real.to(self._device))
        n_requests = len(self._requests)
        prompt_of = torch.from_numpy(self._prompt_of[:n_requests]).to(self._device)
        block_of = prompts.block_of[self._prompt_of[:n_requests]]
        number = {variant.name: i for i, variant in enumerate(self._variants)}
        holding = [
            [v for v in range(len(self._variants)) if self._differs_below(v, layer)] for layer in range(n_layers)
        ]

        def keep(variant: Variant | None, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
            part = PromptKV.of(on_device, k, v)
            if variant is None:
                clean[layer] = part
                return
            # Straight into the buffers: collecting them first would hold all variants' prompts twice.
            if layer not in diverged:
                diverged[layer] = VariantKV.empty(part, len(holding[layer]), block_of, prompts.widths, self._most)
            diverged[layer].fill(holding[layer].index(number[variant.name]), part, prompt_of)

        runs = fork_variants(
            self._stack, self._model.facts, prompts.tree, wanted, self._variants, self._reference, keep, self._marks
        )
        hidden_of = {variant.name: hidden for variant, hidden in runs}
        self._attention = DecodeAttention(prompts, clean)
        self._step = -1
        self._attention.diverged.update(diverged)
        self._index_diverged()
        return hidden_of

    def _index_diverged(self) -> None:
        """Work out which rows have a place in each layer's buffers, and group them by variant and shared prefix."""
        prompts, attention = self._prompts, self._attention
        block_of = prompts.block_of[self._prompt_of]
        memo: dict[tuple[int, ...], tuple[np.ndarray, DivergedRows]] = {}
        for layer in attention.diverged:
            held = tuple(v for v in self._held_variants() if self._differs_below(v, layer))
            if held not in memo:
                mine = self._dense[np.isin(self._variant_of[self._dense], held)]
                mine = mine[np.argsort(block_of[mine], kind="stable")]
                place = np.full(len(self._place), -1)
                place[mine] = np.arange(len(mine))
                variant = np.searchsorted(held, self._variant_of[mine])
                prompt = self._prompt_of[mine]
                members = [np.flatnonzero((prompt >= p.first) & (prompt < p.last)) for p in prompts.prefixes]
                tables = tables_by_group([(variant[own], len(held), own) for own in members], self._device)
                real = [
                    self._real(prompt[block_of[mine] == number], width) for number, width in enumerate(prompts.widths)
                ]
                lengths = prompts.lengths[torch.from_numpy(prompt)].to(self._device)
                begins = [None if mask is None else (~mask).sum(1) for mask in real]
                memo[held] = place, DivergedRows(real, begins, tables, lengths)
            self._diverged_place[layer], attention.diverged_rows[layer] = memo[held]

    def _real(self, prompt: np.ndarray, width: int) -> Bool[torch.Tensor, "row width+generated"] | None:
        """Which columns of a block are not padding, by its rows' prompts; ``None`` if there is no padding."""
        real = self._prompts.real[torch.from_numpy(prompt), -width:]
        if bool(real.all()):
            return None
        return torch.cat([real, real.new_ones(len(real), self._most)], dim=1).to(self._device)

    def _held_variants(self) -> list[int]:
        return [int(v) for v in np.unique(self._variant_of[self._dense])]

    def _differs_below(self, variant: int, layer: int) -> bool:
        """Whether the variant has keys and values of its own at this layer."""
        return first_layer(self._variants[variant], self._stack.n_layers) < layer and (
            layer not in self._replaces[variant]
        )

    def _advance(self, rows: np.ndarray, tokens: np.ndarray) -> Float[torch.Tensor, "row d_model"]:
        """Feed the rows' newest tokens; returns the residuals that leave the last layer."""
        self._step += 1
        split = self._histories.advance(rows, tokens)
        step = Step.of(rows, self._first[rows], self._histories.of_row[rows], self._stack.n_layers)
        self._make_room(step, split)
        edits = self._edits(step)
        (tokens_in, positions, unchanged), layers = self._send(step, tokens, edits)
        batch, embedded = self._stack.begin(tokens_in[None], positions[None])
        hidden = embedded[:, : len(step.histories)]
        for layer, index in enumerate(layers):
            hidden = self._run_layer(layer, hidden, batch, index, edits.get(layer))
        self._attention.tokens = None
        return torch.cat([hidden[0, step.n_histories[-1] :], hidden[0, unchanged]])

    def _send(
        self, step: Step, tokens: np.ndarray, edits: dict[int, LayerEdits]
    ) -> tuple[list[torch.Tensor], list[LayerIndex]]:
        """Send all indices of a step in one transfer: the tokens and positions of histories and rows, the history of
        each row that no layer changes, and each layer's `LayerIndex`."""
        n_layers = self._stack.n_layers
        masks, inner, of_layers = zip(
            *(self._layer_arrays(layer, step, edits.get(layer)) for layer in range(n_layers)), strict=True
        )
        both = np.concatenate([step.sample, np.arange(len(step.rows))])
        prompts = self._prompt_of[step.rows[both]]
        positions = self._prompts.lengths.numpy()[prompts] + self._step
        of_step = [tokens[both], positions, step.history_at(n_layers - 1, slice(step.n_rows[-1], None))]
        # Layers that need the same number of histories need the same ones.
        sizes = [int(size) for size in np.unique(step.n_histories) if size]
        n_histories = len(step.histories)
        of_histories = [self._attention.arrays_of(prompts[n_histories - size : n_histories]) for size in sizes]
        own, *sent = sent_at_once([of_step, *of_layers, *of_histories], self._device)
        self._attention.begin_step(self._step, dict(zip(sizes, sent[n_layers:], strict=True)))
        ranges = map(step.tokens, range(n_layers))
        return own, [LayerIndex.of(*fields) for fields in zip(ranges, masks, inner, sent[:n_layers], strict=True)]

    def _layer_arrays(
        self, layer: int, step: Step, edits: LayerEdits | None
    ) -> tuple[np.ndarray, LayerEdits | None, list[np.ndarray]]:
        """Which tokens of one layer's call are computed, their edits, and the index arrays of `LayerIndex.of`."""
        n_before = int(step.n_rows[layer - 1]) if layer else 0
        n_rows, n_histories = int(step.n_rows[layer]), int(step.n_histories[layer])
        is_computed = np.ones(n_histories + n_rows, dtype=bool)
        for edit in edits.replaced if edits is not None else []:
            is_computed[edit.rows] = False
        rows = np.flatnonzero(is_computed[n_histories:])
        differing = rows[self._first[step.rows[rows]] < layer]
        place = self._diverged_place[layer][step.rows[differing]] if len(differing) else differing
        entering = slice(n_before, n_rows)
        inner = edits if edits is None or is_computed.all() else edits.within(is_computed)
        arrays = [
            place[:0] if inner is None else inner.zeros_apart(self._model.facts.n_heads),
            step.history_at(layer - 1, entering) if layer else step.history_of[entering],
            np.flatnonzero(is_computed),
            place,
            step.history_at(layer, rows[len(differing) :]),
            self._attention.histories[layer].places if n_histories else place[:0],
        ]
        return is_computed, inner, arrays + (self._by_block(layer, place) if self._attention.by_kernel else [])

    def _by_block(self, layer: int, place: np.ndarray) -> list[np.ndarray]:
        """Split diverged rows, given by their places in a layer's buffers, by block, with their places in the block."""
        if not len(place):
            return [place] * 2 * len(self._prompts.widths)
        arrays = []
        for _, span in self._attention.diverged[layer].spans():
            inside = np.flatnonzero((place >= span.start) & (place < span.stop))
            arrays += [inside, place[inside] - span.start]
        return arrays

    def _edits(self, step: Step) -> dict[int, LayerEdits]:
        """Each layer's edits, on the tokens of its call."""
        variants, starts = np.unique(self._variant_of[step.rows], return_index=True)
        ends = [*starts[1:], len(step.rows)]
        spans = [slice(int(a), int(b)) for a, b in zip(starts, ends, strict=True)]
        assigned = [(self._variants[v], span) for v, span in zip(variants, spans, strict=True)]
        of_rows = edits_by_layer(assigned, self._reference, self._model.facts, self._rows_at)
        return {layer: edits.moved(int(step.n_histories[layer])) for layer, edits in of_rows.items()}

    def _rows_at(self, at: str, rows: Rows) -> Rows | None:
        """The rows, if the selector chooses their newest tokens; all have the same number of generated tokens."""
        return rows if positions_named(at).in_generated(self._step) else None

    def _run_layer(
        self,
        layer: int,
        below: Float[torch.Tensor, "1 tok_below d_model"],
        batch: FlatBatch,
        index: LayerIndex,
        edits: LayerEdits | None,
    ) -> Float[torch.Tensor, "1 tok d_model"]:
        """One layer on its tokens, given those of the layer below; rows whose whole contribution is replaced are left
        out of its call."""
        n, n_entering, n_first = len(index.is_computed), len(index.entering), index.n_computed_first
        # Histories that no row needs any more are the first ones.
        staying = below[:, below.shape[1] + n_entering - n :]
        entering = below[:, index.entering] if n_entering else below[:, :0]
        replaced = edits is None or edits.only_replaces
        # Only the others are computed: no need to put them together first.
        apart = replaced and n_first == staying.shape[1]
        before = staying if apart or not n_entering else torch.cat([staying, entering], dim=1)
        if n_first is None:
            after = before.clone()
            after[:, index.computed] = self._computed(layer, before[:, index.computed], batch, index)
        else:
            rest = entering if apart else before[:, n_first:]
            after = self._computed(layer, before[:, :n_first], batch, index) if n_first else before[:, :0]
            after = torch.cat([after, rest], dim=1) if rest.shape[1] else after
        positions = batch.position_ids[0, index.tokens]
        if edits is None:
            return after
        if not replaced:
            return edits.contribute(before, after, positions)
        # Rows that were left out hold the residual before the layer.
        edits.add_replacements(after, positions)
        return after

    def _computed(
        self,
        layer: int,
        hidden: Float[torch.Tensor, "1 computed d_model"],
        batch: FlatBatch,
        index: LayerIndex,
    ) -> Float[torch.Tensor, "1 computed d_model"]:
        """The layer's call, on those of its tokens that it computes, given the residuals before it."""
        n_first, begin = index.n_computed_first, index.tokens.start
        taken = index.computed + begin if n_first is None else slice(begin, begin + n_first)
        self._attention.tokens = LayerTokens(
            layer=layer,
            diverged=index.diverged,
            starting=index.starting,
            histories=index.histories,
            blocks=index.blocks,
        )
        return self._stack.run_layer(layer, hidden, batch.take(taken, layer), self._attention, index.edits)

    def _within_budget(self, running: np.ndarray) -> Bool[np.ndarray, " row"]:
        """Which of the running rows may go on; the others' variants are added to `postponed`."""
        kept, step, most = np.ones(len(running), dtype=bool), self._step + 1, self._max_kv_bytes
        if most is not None and self._bytes_held(self._dense, running, step) > most:
            # Those changed lowest hold the most, and come first.
            for variant in np.unique(self._variant_of[running])[:-1]:
                if self._bytes_held(running[kept], running[kept], step) <= most:
                    break
                kept &= self._variant_of[running] != variant
                self.postponed.append(self._order[variant])
            self._drop_rows(np.isin(self._dense, running[kept]), step)
        self.peak_kv_bytes = max(self.peak_kv_bytes, self._bytes_held(self._dense, running[kept], step))
        return kept

    def _bytes_held(self, rows: np.ndarray, running: np.ndarray, step: int) -> int:
        """Keys and values in bytes of the clean model's prompts, of `rows` in the buffers, and of the histories of the
        `running` rows, with room for token `step`."""
        prompts, columns, n_layers = self._prompts, columns_for(step, self._most), self._stack.n_layers
        prefixes = sum(prefix.end - prefix.start for prefix in prompts.prefixes)
        variants = self._variant_of[rows]
        widths = np.array(prompts.widths)[prompts.block_of[self._prompt_of[rows]]]
        tokens = int((self._own_layers[variants] * (widths + columns)).sum())
        tokens += int(self._own_layers[np.unique(variants)].sum()) * prefixes
        tokens += len(self._attention.clean) * (len(prompts) * prompts.width + prefixes)
        history = self._histories.of_row[running] if step else self._prompt_of[running]
        # A history is needed up to the layer that the last of its rows changes.
        deepest = np.zeros(history.max() + 1, dtype=np.int64)
        np.maximum.at(deepest, history, np.minimum(self._first[running] + 1, n_layers))
        return kv_bytes_per_token(self._model.facts) * (tokens + int(deepest.sum()) * columns)

    def _make_room(self, step: Step, split: Split) -> None:
        """Make room for one more token: copy histories that split, and drop finished rows."""
        attention = self._attention
        alive = np.isin(self._dense, step.rows)
        if alive.mean() < 1 - KEEP_DEAD:
            self._drop_rows(alive, self._step)
        for diverged in attention.diverged.values():
            diverged.make_room(self._step)
        for layer, clean in attention.clean.items():
            if layer not in attention.histories:
                attention.histories[layer] = HistoryKV(clean.rest[0], self._most)
            needed = step.histories[len(step.histories) - step.n_histories[layer] :]
            attention.histories[layer].need(needed, split, self._step)

    def _drop_rows(self, alive: np.ndarray, n_written: int) -> None:
        """Keep the `alive` rows of every buffer, with their first `n_written` generated tokens."""
        before = self._held_variants()
        dense = self._dense[alive]
        variants = np.unique(self._variant_of[dense])
        for layer, diverged in list(self._attention.diverged.items()):
            places = self._diverged_place[layer][dense]
            held = [v for v in before if self._differs_below(v, layer)]
            kept = np.flatnonzero(np.isin(held, variants))
            if not len(kept):
                del self._attention.diverged[layer]
                continue
            rows = torch.from_numpy(np.sort(places[places >= 0])).to(self._device)
            diverged.keep(rows, torch.from_numpy(kept).to(self._device), n_written)
        self._dense = dense
        self._index_diverged()
