"""Attention of one decode step: every running row's newest token against blocks of keys, which are not copied.

A row whose variant already differs from the clean model attends to its own block (the rest of its prompt and its
generated tokens) and to its variant's shared prefix. A history (see `histories`) attends to its generated tokens, its
prompt's rest and the shared prefix, all the clean model's. The parts are merged exactly by their log-sum-exp.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from lensprune.engine.attention import AttentionSettings, merge_into, partial_attention
from lensprune.engine.decoding.kv import CleanKV, HistoryKV, Pair, VariantKV
from lensprune.engine.decoding.prompts import PromptSet
from lensprune.engine.decoding.row_keys import RowKeys, Seen, WindowEdges
from lensprune.engine.decoding.step_tables import DivergedRows, HistoriesByPrompt, LayerTokens, Table, shared_spans
from lensprune.engine.kernels import Partial, is_recent_gpu
from lensprune.precision import accumulation_dtype, widened

__all__ = ["DecodeAttention"]


class _Keys(NamedTuple):
    """Keys and values of groups of rows, and which row sees which key (``None``: all)."""

    k: Float[torch.Tensor, "group kv_head key d_head"]
    v: Float[torch.Tensor, "group kv_head key d_head"]
    allowed: Bool[torch.Tensor, "#group #row key"] | None = None


@dataclass
class DecodeAttention:
    """The plan of a decode step; set `tokens` before each layer and call `begin_step` before each step.

    `step` counts generated tokens from 0; the newest token's keys and values are written at that index.
    """

    prompts: PromptSet
    clean: CleanKV
    diverged: dict[int, VariantKV] = field(default_factory=dict)
    diverged_rows: dict[int, DivergedRows] = field(default_factory=dict)
    histories: dict[int, HistoryKV] = field(default_factory=dict)
    step: int = 0
    tokens: LayerTokens | None = None

    def __post_init__(self) -> None:
        device = next(iter(self.clean.values())).rest[0].device if self.clean else torch.device("cpu")
        self._real = None if bool(self.prompts.real.all()) else self.prompts.real.to(device)
        self._begins = None if self._real is None else (~self._real).sum(1)
        lengths = [self.prompts.lengths[p.first : p.last] for p in self.prompts.prefixes]
        self._lengths_with = [(int(own.min()), int(own.max())) for own in lengths]
        self._shared_columns = self.prompts.shared_columns
        self._shared_spans = shared_spans(self.prompts)
        self._attend_rows = rows_kernel(device)
        self._in_order: Pair = (torch.empty(0, dtype=torch.long, device=device),) * 2
        self._by_prompt: dict[int, HistoriesByPrompt] = {}

    def arrays_of(self, prompts: Int[np.ndarray, " history"]) -> list[np.ndarray]:
        """Index arrays that attention needs on the device for histories of these prompts; see `begin_step`."""
        return HistoriesByPrompt.arrays(self.prompts, self._shared_spans, prompts)

    def begin_step(self, step: int, by_prompt: Mapping[int, Sequence[torch.Tensor]]) -> None:
        """Set the step. `by_prompt` maps the number of histories in a layer's call to `arrays_of` their prompts, on the
        device."""
        self.step = step
        self._by_prompt = {size: HistoriesByPrompt.sent(tensors) for size, tensors in by_prompt.items()}

    def attend(
        self,
        q: Float[torch.Tensor, "head tok d_head"],
        k: Float[torch.Tensor, "kv_head tok d_head"],
        v: Float[torch.Tensor, "kv_head tok d_head"],
        settings: AttentionSettings,
    ) -> Float[torch.Tensor, "tok head d_head"]:
        tokens = self.tokens
        assert tokens is not None
        q, k, v = (t.transpose(0, 1) for t in (q, k, v))
        if self._attend_rows is not None and settings.softcap is None and q.dtype != torch.float64:
            return self._attend_in_few_calls(tokens, q, k, v, settings)
        begin, end = tokens.diverged_range
        parts = []
        if begin:
            parts.append(self._attend_histories(tokens, q[:begin], k[:begin], v[:begin], settings))
        if begin < end:
            parts.append(self._attend_diverged(tokens, q[begin:end], k[begin:end], v[begin:end], settings))
        if len(tokens.starting):
            parts.append(parts[0][tokens.starting])
        return torch.cat(parts).to(q.dtype)

    @property
    def by_kernel(self) -> bool:
        """Whether rows may attend by a kernel, so that `blocks` and `queries` of `LayerTokens` are needed."""
        return self._attend_rows is not None

    def _attend_in_few_calls(
        self, tokens: LayerTokens, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, settings: AttentionSettings
    ) -> Float[torch.Tensor, "tok head d_head"]:
        """Shared prefixes as in `attend`; a row's other keys, and the merge, by one kernel call per block of rows."""
        begin, end = tokens.diverged_range
        z = q.new_empty(q.shape)
        if begin < end:
            self._diverged_by_kernel(tokens, q[begin:end], k[begin:end], v[begin:end], z[begin:end], settings)
        if begin:
            self._histories_by_kernel(tokens, q[:begin], k[:begin], v[:begin], z[:begin], settings)
        if len(tokens.starting):
            torch.index_select(z[:begin], 0, tokens.starting, out=z[end:])
        return z

    def _diverged_by_kernel(
        self,
        tokens: LayerTokens,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        z: torch.Tensor,
        settings: AttentionSettings,
    ) -> None:
        """Write to `z` the attention of diverged rows; all tensors cover these only."""
        assert self._attend_rows is not None
        diverged, rows = self.diverged[tokens.layer], self.diverged_rows[tokens.layer]
        seen = self._seen_prefixes(q, tokens.queries, rows.prefixes, len(diverged), diverged.shared, settings)
        edges = self._window_edges(diverged.shared, rows.variant, rows.spans, settings)
        for (block, span), begins, (calls, places) in zip(diverged.spans(), rows.begins, tokens.blocks, strict=True):
            end = block.width + self.step + 1
            first = _first_seen(end, settings.window)
            keys = RowKeys(*block.rest, places, end, begins, calls, first, row_from=span.start)
            self._attend_rows(q, (k, v), z, keys, settings.scaling, seen=seen, edges=edges)

    def _histories_by_kernel(
        self,
        tokens: LayerTokens,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        z: torch.Tensor,
        settings: AttentionSettings,
    ) -> None:
        """Write to `z` the attention of the histories' newest tokens; all tensors cover these only."""
        assert self._attend_rows is not None
        clean, by_prompt = self.clean[tokens.layer], self._by_prompt[len(tokens.histories)]
        shared, prefixes = (clean.shared[0][None], clean.shared[1][None]), by_prompt.prefixes
        queries = [None if len(table.members) == len(q) else table.index for table in prefixes]
        seen = self._seen_prefixes(q, queries, prefixes, len(q), shared, settings)
        edges = self._window_edges(shared, self._numbers(len(q))[1], by_prompt.spans, settings)
        end, width = self.step + 1, self.prompts.width
        first, first_of_rest = (_first_seen(size, settings.window) for size in (end, width + end))
        generated = RowKeys(*self.histories[tokens.layer].pair, tokens.histories, end, first=first)
        rest = RowKeys(*clean.rest, by_prompt.prompts, width, self._begins, first=first_of_rest)
        self._attend_rows(q, (k, v), z, rest, settings.scaling, more=generated, seen=seen, edges=edges)

    def _attend_diverged(
        self, tokens: LayerTokens, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, settings: AttentionSettings
    ) -> Float[torch.Tensor, "diverged head d_head"]:
        kv, rows = self.diverged[tokens.layer], self.diverged_rows[tokens.layer]
        q, k, v = (_scattered(t, tokens.diverged, len(kv)) for t in (q, k, v))
        kv.write(self.step, k, v)
        parts = []
        for (block, span), real in zip(kv.spans(), rows.real, strict=True):
            if not len(block):
                continue
            end = block.width + self.step + 1
            begin = _first_seen(end, settings.window)
            allowed = None
            if real is not None and begin < block.width:
                allowed = real[:, None, begin:end]
            parts.append(
                _one_query(q[span], block.rest[0][:, :, begin:end], block.rest[1][:, :, begin:end], settings, allowed)
            )
        total = torch.cat([out for out, _ in parts]), torch.cat([lse for _, lse in parts])
        for number, table in enumerate(rows.prefixes):
            if table:
                keys = self._of_prefix(number, kv.shared, table, rows.lengths, settings)
                _merge_table(total, q, table, keys, settings)
        return total[0][tokens.diverged]

    def _of_prefix(
        self, number: int, shared: Pair, table: Table, lengths: Int[torch.Tensor, " row"], settings: AttentionSettings
    ) -> _Keys:
        """A shared prefix's keys and values as far as the window lets any row see them; `lengths` of rows' prompts."""
        k, v = (t[:, :, self._shared_columns[number]] for t in shared)
        if settings.window is None:
            return _Keys(k, v)
        shortest, longest = self._lengths_with[number]
        begin, end = (_first_seen(length + self.step + 1, settings.window) for length in (shortest, longest))
        k, v = k[:, :, begin:], v[:, :, begin:]
        if begin == end or not k.shape[2]:
            return _Keys(k, v)
        first = lengths[table.index] + (self.step + 1 - settings.window - begin)
        return _Keys(k, v, torch.arange(k.shape[2], device=k.device) >= first[..., None])

    def _seen_prefixes(
        self,
        q: Float[torch.Tensor, "tok head d_head"],
        queries: Sequence[Int[torch.Tensor, "group place"] | None],
        tables: Sequence[Table],
        n_rows: int,
        shared: Pair,
        settings: AttentionSettings,
    ) -> Seen | None:
        """Attention of each of `n_rows` to what all rows of its shared prefix see of it; ``None`` if that is nothing.

        Args:
            queries: for each prefix, the tokens whose queries take the places of its table; ``None``: all, in order,
                which then are its only group.
        """
        parts = []
        for number, (index, table) in enumerate(zip(queries, tables, strict=True)):
            columns, (_, longest) = self._shared_columns[number], self._lengths_with[number]
            begin = columns.start + _first_seen(longest + self.step + 1, settings.window)
            if table and begin < columns.stop:
                k, v = (t[:, :, begin : columns.stop] for t in shared)
                grouped = q[None] if index is None else q[index]
                parts.append((table, *partial_attention(grouped.transpose(1, 2), k, v, settings)))
        if not parts:
            return None
        if len(parts) == 1 and len(parts[0][0].members) == n_rows:
            # One prefix for all rows, as of few-shot examples.
            table, out, lse = parts[0]
            return Seen(out, lse, table.group, table.place)
        shape = n_rows, *q.shape[1:]
        total = q.new_zeros(shape), q.new_full(shape[:2], -torch.inf, dtype=accumulation_dtype(q.dtype))
        for table, *part in parts:
            for whole, own in zip(total, part, strict=True):
                whole[table.members] = own[table.group, :, table.place].to(whole.dtype)
        return Seen(total[0][:, :, None], total[1][:, :, None], *self._numbers(n_rows))

    def _window_edges(
        self,
        shared: Pair,
        group: Int[torch.Tensor, " row"],
        spans: Int[torch.Tensor, "row 4"],
        settings: AttentionSettings,
    ) -> WindowEdges | None:
        """What `_seen_prefixes` leaves out, of rows in these groups of `shared`; ``None`` if that is nothing."""
        if settings.window is None:
            return None
        shift = self.step + 1 - settings.window
        for columns, (shortest, longest) in zip(self._shared_columns, self._lengths_with, strict=True):
            if max(0, shortest + shift) < min(columns.stop - columns.start, longest + shift):
                return WindowEdges(*shared, group, spans, shift)
        return None

    def _numbers(self, n: int) -> Pair:
        """The numbers from 0 on, and as many zeros."""
        if len(self._in_order[0]) < n:
            order = torch.arange(2 * n, device=self._in_order[0].device)
            self._in_order = order, torch.zeros_like(order)
        return self._in_order[0][:n], self._in_order[1][:n]

    def _attend_histories(
        self, tokens: LayerTokens, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, settings: AttentionSettings
    ) -> Float[torch.Tensor, "history head d_head"]:
        kv, clean = self.histories[tokens.layer], self.clean[tokens.layer]
        places, size = tokens.histories, len(kv)
        kv.write(places, self.step, k, v)
        begin, end = _first_seen(self.step + 1, settings.window), self.step + 1
        generated = [t[:, :, begin:end] for t in kv.pair]
        out, lse = _one_query(_scattered(q, places, size), generated[0], generated[1], settings, None)
        total = out[places], lse[places]
        by_prompt = self._by_prompt[len(tokens.histories)]
        width = self.prompts.width
        begin = _first_seen(width + end, settings.window)
        if begin < width:
            allowed = None if self._real is None else self._real[:, None, begin:]
            rest = _Keys(clean.rest[0][:, :, begin:], clean.rest[1][:, :, begin:], allowed)
            _merge_table(total, q, by_prompt.rest, rest, settings)
        shared = clean.shared[0][None], clean.shared[1][None]
        for number, table in enumerate(by_prompt.prefixes):
            if table:
                keys = self._of_prefix(number, shared, table, by_prompt.lengths, settings)
                _merge_table(total, q, table, keys, settings)
        return total[0]


def rows_kernel(device: torch.device) -> Callable[..., None] | None:
    """The kernel that attends to a row's own keys in one call on this device; ``None`` if there is none."""
    if not is_recent_gpu(device):
        return None
    try:
        from lensprune.engine.decoding.row_kernel import attend_rows
    except ImportError:
        # Builds of torch without Triton; the numbers are the same.
        return None
    return attend_rows


def _first_seen(end: int, window: int | None) -> int:
    """The first column that the last of `end` columns sees."""
    return 0 if window is None else max(0, end - window)


def _scattered(q: torch.Tensor, places: torch.Tensor, size: int) -> torch.Tensor:
    scattered = q.new_zeros(size, *q.shape[1:])
    scattered[places] = q
    return scattered


def _one_query(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, settings: AttentionSettings, allowed: torch.Tensor | None
) -> Partial:
    """Attention of one query per row; widened output [row, head, d_head] and log-sum-exp [row, head]."""
    out, lse = partial_attention(q[:, :, None], k, v, settings, allowed=allowed)
    return widened(out[:, :, 0]), lse[:, :, 0]


def _merge_table(
    total: Partial,
    q: Float[torch.Tensor, "row head d_head"],
    table: Table,
    keys: _Keys,
    settings: AttentionSettings,
) -> None:
    """Merge, in place, attention of each group's rows to the group's keys."""
    k, v, allowed = keys
    if not k.shape[2]:
        return
    out, lse = partial_attention(q[table.index].transpose(1, 2), k, v, settings, allowed=allowed)
    here = total[0][table.members], total[1][table.members]
    merge_into(here, (widened(out[table.group, :, table.place]), lse[table.group, :, table.place]))
    total[0][table.members], total[1][table.members] = here
