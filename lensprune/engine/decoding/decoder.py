"""Decoding of many variants on a set of prompts, all rows (variant × request) in one step.

Each step runs the layers once. The tokens of a layer's call are the rows whose variant is changed at or below that
layer, and one token for each history (prompt and generated tokens) that a row has whose variant is changed above it:
what equals the clean model is computed once for all variants.

Not all variants fit into memory at once. The prompts' pass is therefore lazy: it stops after some variants, whose rows
are decoded; as rows end and free their keys and values, it goes on and a further group of variants joins the running
steps. The clean model goes through the prompts once, whatever the number of groups.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from lensprune.ablation.reference import ReferenceActivations
from lensprune.ablation.variants import Variant
from lensprune.engine.attention import AttentionPlan
from lensprune.engine.decoding.checkpoint import Array, Checkpoint, Saved, numbered
from lensprune.engine.decoding.groups import kv_bytes_per_token
from lensprune.engine.decoding.kv import CleanKV, PromptKV
from lensprune.engine.decoding.layer_calls import JoinedAttention, LayerCall
from lensprune.engine.decoding.row_group import RowGroup
from lensprune.engine.decoding.rows import RowTable
from lensprune.engine.decoding.steps import sent_at_once
from lensprune.engine.fork import fork_variants
from lensprune.engine.generating import Generation, Generator, RowWork
from lensprune.engine.layer_graphs import LayerGraphs
from lensprune.engine.layers import FlatBatch, LayerStack
from lensprune.engine.limits import DecodeLimits
from lensprune.engine.marks import Marks
from lensprune.engine.memory import UNEMBED_ROWS
from lensprune.engine.out_of_memory import out_of_memory
from lensprune.engine.scoring import finite_rows
from lensprune.errors import first_line
from lensprune.models.base import HookedModel
from lensprune.precision import widened
from lensprune.protocols.requests import GenerateRequest, GenerateResponse

__all__ = ["GroupDecoder"]

logger = logging.getLogger("lensprune")

MAX_GROUPS = 6
"""Groups in a step: each attends by itself."""

WORK_STEPS = 8
"""Decode steps between reports of progress."""

Hidden = Float[torch.Tensor, "row d_model"]


class GroupDecoder:
    """Decodes `requests` under `variants`, as many rows at once as `limits` allow.

    With `marks`, which variants with positions need, the contexts are `marked`. `answered` are the (variant, request)
    that need no rows. Steps replay graphs if `layers` are some. Keys and values stay within the limits whatever is
    generated, but for those of a single variant, which may need more.
    """

    def __init__(
        self,
        model: HookedModel,
        layers: LayerStack | LayerGraphs,
        variants: Sequence[Variant],
        requests: Sequence[GenerateRequest],
        reference: ReferenceActivations | None,
        marks: Marks | None = None,
        limits: DecodeLimits | None = None,
        answered: Collection[tuple[int, int]] = (),
    ) -> None:
        self.peak_kv_bytes = 0
        self._model, self._reference, self._marks = model, reference, marks
        self._run_one = layers.run_layer
        self._stack = layers.stack if isinstance(layers, LayerGraphs) else layers
        self._limits = limits
        self._device = model.facts.device
        self._table = RowTable.of(variants, requests, self._stack.n_layers)
        self._is_wanted = np.array([self._place(row) not in answered for row in range(len(self._table))])
        # Padded prompts are taken from every layer of every variant.
        prompts = self._table.prompts
        self._prompts = replace(prompts, rest=prompts.rest.to(self._device), real=prompts.real.to(self._device))
        self._clean: CleanKV = {}
        self._groups: list[RowGroup] = []
        self._admitted = 0
        """Variants whose prompts have run: the first ones of the table."""
        self._largest = 0
        """Variants that fit while nothing else runs."""

    def run(
        self,
        on_work: Callable[[int, float, bool], None] = lambda variant, rows, known: None,
        checkpoint: Checkpoint | None = None,
        saved: Saved | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> Iterator[tuple[int, int, GenerateResponse]]:
        """Yield (variant, request, response), numbered as given, in the order in which rows finish.

        Args:
            on_work: called with a variant, numbered as given, as a `WorkCallback` is with its name, and whether the
                work had been done before.
            checkpoint: keeps the state from time to time.
            saved: the state to begin with, of a decoder of the same variants and requests; one that isn't is passed
                over, with a warning if it can't be read.
            about: what else the checkpoint's file should say.
        """
        table, generator = self._table, Generator(self._model)
        generations: list[Generation] = []
        # What the prompts share is shared by their rows.
        n_tokens = len(table.prompts.tree) / len(table.requests)
        request_of = table.request_of(np.arange(len(table)))
        work = RowWork([n_tokens] * len(table), [table.requests[request].max_new_tokens for request in request_of])
        done, n_steps = np.zeros(len(table.variants)), 0
        rows, hidden = np.empty(0, dtype=int), None
        if saved is not None and (restored := self._restored(saved, generator)) is not None:
            rows, hidden, generations = restored
            so_far = work.so_far(rows, np.array([len(generation) for generation in generations]))
            self._report(np.bincount(table.variant_of(rows), so_far, len(done)), on_work, known=True)
        self._start(self._prompts.last_token.to(self._device))
        while True:
            if n_new := self._fitting(rows):
                new, of_variants = self._admit(n_new, rows)
                done += np.bincount(table.variant_of(new), work.prompts[new], len(done))
                nth = table.variant_of(new) - (self._admitted - n_new)
                places = torch.from_numpy(nth * len(table.prompts) + table.prompt_of(new))
                of_rows = torch.cat(of_variants)[places.to(self._device)]
                generations += [generator.start(table.requests[request]) for request in request_of[new]]
                rows, hidden = np.concatenate([rows, new]), of_rows if hidden is None else torch.cat([hidden, of_rows])
            if n_new or n_steps % WORK_STEPS == 0 or not len(rows):
                self._report(done, on_work)
            if hidden is None or not len(rows):
                if self._admitted == len(table.variants):
                    return
                continue
            if checkpoint is not None and checkpoint.due():
                facts, arrays = self._state(rows, hidden, generations)
                checkpoint.write({**facts, **(about or {})}, arrays, self._kv_bytes(rows))
            n_steps += 1
            chosen, finite = self._choose(hidden, generator, generations)
            running, ended_at = np.ones(len(rows), dtype=bool), np.zeros(len(rows))
            for i, generation in enumerate(generations):
                response = generation.add(chosen[i], finite=finite[i])
                if response is not None:
                    running[i], ended_at[i] = False, len(generation)
                    yield *self._place(rows[i]), response
            done += np.bincount(table.variant_of(rows), work.step(rows, ended_at), len(done))
            if not running.all():
                rows, generations = rows[running], [generations[i] for i in np.flatnonzero(running)]
            tokens = np.array([generation.last for generation in generations])
            hidden = self._advance(rows, tokens) if len(rows) else None

    def _place(self, row: int) -> tuple[int, int]:
        """Variant and request of a row, numbered as given."""
        variant, request = divmod(int(row), len(self._table.requests))
        return self._table.order[variant], request

    def _rows_of(self, variants: range) -> np.ndarray:
        """The rows of consecutive variants, without those that are answered."""
        rows = self._table.rows_of(variants)
        return rows[self._is_wanted[rows]]

    def _report(self, done: np.ndarray, on_work: Callable[[int, float, bool], None], *, known: bool = False) -> None:
        """Report how much of each variant's rows is `done`, and reset it."""
        for variant in np.flatnonzero(done):
            on_work(self._table.order[variant], float(done[variant]), known)
        done[:] = 0

    def _state(
        self, rows: np.ndarray, hidden: Hidden, generations: Sequence[Generation]
    ) -> tuple[dict[str, Any], Iterator[tuple[str, Array]]]:
        """What `_restored` needs, before tokens are chosen: facts for the file, and arrays by name."""
        groups = [group for group, _ in self._running(rows)]
        # Of the variants that wait, at least one will run at a time.
        waiting = range(self._admitted, len(self._table.variants))
        alone = [rows, *(own for v in waiting if len(own := self._rows_of(range(v, v + 1))))]

        def arrays() -> Iterator[tuple[str, Array]]:
            yield "rows", rows
            yield "hidden", hidden
            yield "lengths", np.array([len(generation) for generation in generations])
            yield "tokens", np.array([token for generation in generations for token in generation.token_ids], dtype=int)
            for layer, part in self._clean.items():
                yield from numbered(f"clean.{layer}", part.state())
            for number, group in enumerate(groups):
                yield from ((f"group.{number}.{name}", array) for name, array in group.state())

        about = {
            "variants": [variant.name for variant in self._table.variants],
            "table": self._table.fingerprint,
            "rows": max(len(own) for own in alone),
            "kv_bytes": max(self._most_kv_bytes(own) for own in alone),
            "admitted": self._admitted,
            "largest": self._largest,
            "groups": [(group.variants.start, group.variants.stop) for group in groups],
        }
        return about, arrays()

    def _restored(self, saved: Saved, generator: Generator) -> tuple[np.ndarray, Hidden, list[Generation]] | None:
        """Take a state over; returns the rows that run, without those that are answered since, the residuals that their
        next tokens come from, and their texts. ``None`` if the state is of another table or can't be read."""
        if saved.about["table"] != self._table.fingerprint:
            saved.close()
            return None
        try:
            return self._restore(saved, generator)
        except Exception as error:
            # A file that only speeds up must not stop the run, whatever is wrong with it.
            if out_of_memory(error):
                raise
            logger.warning(f"{saved.path} is not of this run ({first_line(error)}): unfinished texts begin again")
            self._admitted, self._largest, self._clean, self._groups = 0, 0, {}, []
            return None
        finally:
            saved.close()

    def _restore(self, saved: Saved, generator: Generator) -> tuple[np.ndarray, Hidden, list[Generation]]:
        table, about, device = self._table, saved.about, self._device
        self._admitted, self._largest = about["admitted"], about["largest"]
        if not 0 < self._admitted <= len(table.variants):
            raise ValueError(f"{self._admitted} variants")
        for layer in range(table.n_layers):
            if tensors := saved.tensors(f"clean.{layer}", device):
                self._clean[layer] = PromptKV.restored(tensors)
        for number, bounds in enumerate(about["groups"]):
            rows = saved.array(f"group.{number}.rows")
            group = RowGroup(table, range(*bounds), rows, self._clean, self._reference, self._model.facts)
            group.restore(saved, f"group.{number}")
            self._groups.append(group)
        rows, ends = saved.array("rows"), np.cumsum(saved.array("lengths"))
        texts = np.split(saved.array("tokens"), ends[:-1])
        kept = np.flatnonzero(self._is_wanted[rows])
        generations = []
        for row in kept:
            generation = generator.start(table.requests[rows[row] % len(table.requests)])
            for token in texts[row].tolist():
                generation.add(token)
            generations.append(generation)
        return rows[kept], saved.tensor("hidden", device)[torch.from_numpy(kept).to(device)], generations

    def forced(self, tokens: Sequence[int], n_prefilled: int = 1) -> Float[torch.Tensor, "variant scored"]:
        """Log-probabilities (nats) around the end of the one request's prompt: of its last tokens and of the first of
        `tokens`, `n_prefilled` in all, from the pass over the prompt, and of the rest of `tokens`, decoded one by one
        even if the model would choose others."""
        prompt = self._table.requests[0].context_ids
        self._start(torch.arange(len(prompt) - n_prefilled, len(prompt), device=self._device))
        rows, of_variants = self._admit(len(self._table.variants), np.empty(0, dtype=int))
        targets = torch.tensor([*prompt[len(prompt) - n_prefilled + 1 :], tokens[0]], device=self._device)[:, None]
        prefilled = [
            widened(self._stack.logits(hidden)).log_softmax(-1).gather(1, targets)[:, 0] for hidden in of_variants
        ]
        scores = [torch.stack(prefilled)]
        for before, token in pairwise(tokens):
            hidden = self._advance(rows, np.full(len(rows), before))
            scores.append(widened(self._stack.logits(hidden)).log_softmax(-1)[:, token, None])
        return torch.cat(scores, 1)[np.argsort(self._table.order)]

    def _choose(
        self,
        hidden: Hidden,
        generator: Generator,
        rows: Sequence[Generation],
    ) -> tuple[list[int], list[bool]]:
        """Next token of each row, and whether its logits are finite."""
        tokens, finite = [], []
        for begin in range(0, len(hidden), UNEMBED_ROWS):
            logits = self._stack.logits(hidden[begin : begin + UNEMBED_ROWS])
            tokens.append(generator.choose(logits, rows[begin : begin + UNEMBED_ROWS]))
            finite.append(finite_rows(logits))
        return torch.cat(tokens).tolist(), torch.cat(finite).tolist()

    def _start(self, wanted: Int[torch.Tensor, " wanted"]) -> None:
        """Begin the prompts' pass, which returns the residuals of the `wanted` flat tokens for each variant whose
        prompts have not run."""
        if self._admitted == len(self._table.variants):
            return

        def keep(variant: Variant | None, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
            part = PromptKV.of(self._prompts, k, v)
            if variant is None:
                self._clean[layer] = part
            else:
                self._groups[-1].keep(variant, layer, part)

        self._passes = fork_variants(
            self._stack,
            self._model.facts,
            self._prompts.tree,
            wanted,
            self._table.variants[self._admitted :],
            self._reference,
            keep,
            self._marks,
        )

    def _fitting(self, running: np.ndarray) -> int:
        """How many of the waiting variants may join the running rows."""
        table, limits, first = self._table, self._limits, self._admitted
        waiting = len(table.variants) - first
        if limits is None or not waiting:
            return waiting
        self._groups = [group for group, _ in self._running(running)]
        if len(self._groups) == MAX_GROUPS:
            return 0
        fitting = 0
        for last in range(first, first + waiting):
            rows = np.concatenate([running, self._rows_of(range(first, last + 1))])
            if len(rows) > limits.rows or self._most_kv_bytes(rows, last) > limits.kv_bytes:
                break
            fitting += 1
        if not len(running):
            self._largest = max(1, fitting)
            return self._largest
        # Small groups would use up the number of groups.
        return fitting if fitting >= min(waiting, self._largest / MAX_GROUPS) else 0

    def _admit(self, n_variants: int, running: np.ndarray) -> tuple[np.ndarray, list[Float[torch.Tensor, "wanted d"]]]:
        """Run the prompts of the next variants; returns their rows, and each variant's `wanted` residuals."""
        for group, span in self._running(running):
            group.compact(running[span])
        variants = range(self._admitted, self._admitted + n_variants)
        rows = self._rows_of(variants)
        group = RowGroup(self._table, variants, rows, self._clean, self._reference, self._model.facts)
        self._groups.append(group)
        self._admitted = variants.stop
        hidden = [next(self._passes)[1] for _ in variants]
        if variants.stop == len(self._table.variants):
            # Free the residuals from which further variants would have begun.
            self._passes.close()
        group.prompts_done()
        return rows, hidden

    def _running(self, rows: np.ndarray) -> list[tuple[RowGroup, slice]]:
        """The groups of the running rows, with each one's span."""
        variants = self._table.variant_of(rows)
        bounds = [np.searchsorted(variants, (group.variants.start, group.variants.stop)) for group in self._groups]
        spans = [slice(int(begin), int(end)) for begin, end in bounds]
        return [(group, span) for group, span in zip(self._groups, spans, strict=True) if span.stop > span.start]

    def _clean_bytes(self, last: int) -> int:
        """Bytes of the clean model's prompts up to the first changed layer of variant `last`."""
        prompts = self._table.prompts
        n_layers = min(self._table.n_layers, int(self._table.firsts[last]) + 1)
        tokens = len(prompts) * prompts.width + prompts.shared_tokens
        return kv_bytes_per_token(self._model.facts) * n_layers * tokens

    def _most_kv_bytes(self, rows: np.ndarray, last: int | None = None) -> int:
        """Most bytes of keys and values that the rows may come to, whose last variant, in the table, is `last`."""
        last = int(self._table.variant_of(rows[-1:])[0]) if last is None else last
        return self._table.most_kv_bytes(rows, self._model.facts) + self._clean_bytes(last)

    def _kv_bytes(self, rows: np.ndarray) -> int:
        """Keys and values in bytes, as the running rows take one more token."""
        of_groups = sum(group.kv_bytes(rows[span]) for group, span in self._running(rows))
        return of_groups + self._clean_bytes(self._admitted - 1)

    def _advance(self, rows: np.ndarray, tokens: np.ndarray) -> Hidden:
        """Feed the rows' newest tokens; returns the residuals that leave the last layer."""
        running, n_layers = self._running(rows), self._stack.n_layers
        self._groups = [group for group, _ in running]
        self.peak_kv_bytes = max(self.peak_kv_bytes, self._kv_bytes(rows))
        for group, span in running:
            group.begin(rows[span], tokens[span])
        steps = [group.now for group in self._groups]
        starts = np.cumsum([0, *(len(step.histories) for step in steps)])
        history_of = np.concatenate([start + step.history_of for start, step in zip(starts, steps, strict=False)])
        calls, below, n_rows = [], slice(0, int(starts[-1])), 0
        for layer in range(n_layers):
            calls.append(LayerCall.of(self._groups, layer, history_of[n_rows:], below))
            below, n_rows = calls[-1].tokens, calls[-1].tokens.stop - int(starts[-1])
        arrays = [group.arrays() for group in self._groups]
        # All histories, then all rows.
        row_of = np.concatenate([*(span.start + group.now.sample for group, span in running), np.arange(len(rows))])
        positions = np.concatenate([group.positions for group in self._groups])
        of_step = [tokens[row_of], positions[row_of], history_of[n_rows:] - below.start]
        of_calls = [call.arrays(self._model.facts.n_heads) for call in calls]
        of_groups = [array for of_group in arrays for array in of_group]
        (tokens_in, positions_in, unchanged), *sent = sent_at_once([of_step, *of_calls, *of_groups], self._device)
        batch, embedded = self._stack.begin(tokens_in[None], positions_in[None])
        indices, sent = sent[:n_layers], sent[n_layers:]
        for group, of_group in zip(self._groups, arrays, strict=True):
            group.send(sent[: len(of_group)])
            sent = sent[len(of_group) :]
        hidden = embedded[:, : starts[-1]]
        for layer, (call, index) in enumerate(zip(calls, indices, strict=True)):
            hidden = self._run_layer(layer, hidden, batch, call, index)
        for group in self._groups:
            group.attention.tokens = None
        n_histories = calls[-1].n_histories
        return torch.cat([hidden[0, n_histories:], hidden[0, unchanged]])

    def _run_layer(
        self,
        layer: int,
        below: Float[torch.Tensor, "1 tok_below d_model"],
        batch: FlatBatch,
        call: LayerCall,
        indices: Sequence[torch.Tensor],
    ) -> Float[torch.Tensor, "1 tok d_model"]:
        """One layer on its tokens, given those of the layer below; rows whose whole contribution is replaced are left
        out of its call."""
        (taken_from, computed, zeroed), n_first = indices, call.n_first
        edits, inner, begin = call.edits, call.inner, call.tokens.start
        if inner is not None and len(zeroed):
            inner = replace(inner, heads=[], zeroed=zeroed)
        taken = below.index_select(1, taken_from) if len(taken_from) else below[:, :0]
        before = below[:, below.shape[1] - call.n_staying :] if call.entering_apart else taken

        def run(hidden: torch.Tensor, taken: slice | torch.Tensor) -> torch.Tensor:
            return self._run_one(layer, hidden, batch.take(taken, layer), self._attention(layer, call), inner)

        if n_first is None:
            after = before.clone()
            after[:, computed] = run(before[:, computed], begin + computed)
        else:
            rest = taken if call.entering_apart and len(call.entering) else before[:, n_first:]
            after = run(before[:, :n_first], slice(begin, begin + n_first)) if n_first else before[:, :0]
            after = torch.cat([after, rest], dim=1) if rest.shape[1] else after
        if edits is None:
            return after
        positions = batch.position_ids[0, call.tokens]
        if not edits.only_replaces:
            return edits.contribute(before, after, positions)
        # Rows that were left out hold the residual before the layer.
        edits.add_replacements(after, positions)
        return after

    def _attention(self, layer: int, call: LayerCall) -> AttentionPlan:
        parts = [(group, *sizes) for group, sizes in zip(self._groups, call.sizes, strict=True) if any(sizes)]
        for group, *_ in parts:
            group.attention.tokens = group.tokens[layer]
        plans = [(group.attention, n_histories, n_rows) for group, n_histories, n_rows in parts]
        return plans[0][0] if len(plans) == 1 else JoinedAttention(plans)
