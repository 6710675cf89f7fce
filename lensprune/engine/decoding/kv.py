"""Keys and values to decode from: the clean model's once for all variants, each variant's own above its first change.

Generated tokens' keys and values follow each prompt's rest in the same buffer, so a decode step attends to the shared
prefix as one block and to the rest of the row as another. Where a variant still equals the clean model, the rows that
have the same prompt and the same generated tokens share one history, whatever their variant.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int

from lensprune.engine.decoding.prompts import PromptSet
from lensprune.engine.decoding.shared_histories import Split

__all__ = ["Block", "CleanKV", "HistoryKV", "Pair", "PromptKV", "VariantKV", "columns_for"]

GROWTH = 32
"""Columns added at a time for generated tokens; few rows and histories reach the maximum length."""

Pair = tuple[torch.Tensor, torch.Tensor]


def columns_for(step: int, most: int) -> int:
    """Columns that hold generated tokens 0 to `step` of at most `most`."""
    return min((step // GROWTH + 1) * GROWTH, most)


@dataclass
class PromptKV:
    """One model's keys and values of a prompt set at one layer.

    `rest`: [prompt, kv_head, width, d_head] each, zero where padded; `shared`: [kv_head, shared, d_head] each, of all
    shared prefixes, one after another.
    """

    rest: Pair
    shared: Pair

    @classmethod
    def of(cls, prompts: PromptSet, k: torch.Tensor, v: torch.Tensor) -> PromptKV:
        """From flat keys and values [kv_head, tok, d_head]."""
        index = prompts.rest.to(k.device)
        padded = ~prompts.real.to(k.device)[:, None, :, None]
        rest = tuple(t[:, index].transpose(0, 1).masked_fill(padded, 0) for t in (k, v))
        spans = [slice(prefix.start, prefix.end) for prefix in prompts.prefixes]
        shared = tuple(torch.cat([t[:, :0], *(t[:, span] for span in spans)], dim=1) for t in (k, v))
        return cls((rest[0], rest[1]), (shared[0], shared[1]))

    def state(self) -> Iterator[torch.Tensor]:
        """All tensors, in the order that `restored` takes."""
        yield from (*self.rest, *self.shared)

    @classmethod
    def restored(cls, tensors: Sequence[torch.Tensor]) -> PromptKV:
        rest, shared = _pairs(tensors)
        return cls(rest, shared)


CleanKV = dict[int, PromptKV]
"""By layer."""


@dataclass
class Block:
    """Keys and values of rows whose prompts have rests of at most `width` tokens: [row, kv_head, width + generated,
    d_head] each."""

    width: int
    rest: Pair

    def __len__(self) -> int:
        return self.rest[0].shape[0]


@dataclass
class VariantKV:
    """Keys and values, at one layer, of the rows whose variant already differs from the clean model below it.

    Rows are numbered through the blocks; within a block, those of one variant follow those of another. `shared`
    [variant, kv_head, shared, d_head] each holds the shared prefixes, one after another.
    """

    blocks: list[Block]
    most: int
    shared: Pair

    @classmethod
    def empty(
        cls, like: PromptKV, n_variants: int, sizes: Sequence[int], widths: Sequence[int], most: int
    ) -> VariantKV:
        """Room for the prompts of `n_variants` variants.

        A CPU takes memory when it is written to, so there all `most` columns of generated tokens are allocated at once:
        growing a buffer would fragment the heap. Elsewhere they are added as tokens come (`make_room`).

        Args:
            sizes: rows of each block.
            widths: the width of each block.
        """
        first = like.rest[0]
        _, n_kv, _, d_head = first.shape
        blocks = []
        for size, width in zip(sizes, widths, strict=True):
            shape = (size, n_kv, width + _allocated(first, 0, most), d_head)
            blocks.append(Block(width, (first.new_empty(shape), first.new_empty(shape))))
        k, v = like.shared
        return cls(blocks, most, (k.new_empty(n_variants, *k.shape), v.new_empty(n_variants, *v.shape)))

    def fill(
        self, variant: int, part: PromptKV, firsts: Sequence[int], prompts: Sequence[Int[torch.Tensor, " row"]]
    ) -> None:
        """Write the prompts of the variant with index `variant`.

        Args:
            firsts: its first row in each block.
            prompts: the prompts of its rows in each block, as indices into `part`.
        """
        for block, first, of_rows in zip(self.blocks, firsts, prompts, strict=True):
            for whole, mine in zip(block.rest, part.rest, strict=True):
                # Rests are aligned on the right.
                begin = mine.shape[2] - block.width
                whole[first : first + len(of_rows), :, : block.width] = mine[of_rows, :, begin:]
        for whole, mine in zip(self.shared, part.shared, strict=True):
            whole[variant] = mine

    def state(self, n_written: int) -> Iterator[torch.Tensor]:
        """All tensors, with the first `n_written` generated tokens, in the order that `restored` takes."""
        for block in self.blocks:
            for tensor in block.rest:
                yield tensor[:, :, : block.width + n_written]
        yield from self.shared

    @classmethod
    def restored(cls, tensors: Sequence[torch.Tensor], widths: Sequence[int], most: int) -> VariantKV:
        """With no room for further tokens until `make_room`."""
        *rests, shared = _pairs(tensors)
        return cls([Block(width, rest) for width, rest in zip(widths, rests, strict=True)], most, shared)

    def __len__(self) -> int:
        return sum(map(len, self.blocks))

    def spans(self) -> Iterator[tuple[Block, slice]]:
        """Each block, with the range of its row numbers."""
        begin = 0
        for block in self.blocks:
            yield block, slice(begin, begin + len(block))
            begin += len(block)

    def keep(self, rows: Int[torch.Tensor, " row"], variants: Int[torch.Tensor, " variant"], step: int) -> None:
        """Keep only these rows, in ascending order, and these variants; `step` tokens were written so far."""
        kept = [rows[(rows >= span.start) & (rows < span.stop)] - span.start for _, span in self.spans()]
        for block, mine in zip(self.blocks, kept, strict=True):
            self._move(block, step, mine)
        self.shared = self.shared[0][variants], self.shared[1][variants]

    def make_room(self, step: int) -> None:
        """Make room for generated token `step`."""
        for block in self.blocks:
            if block.width + step >= block.rest[0].shape[2]:
                self._move(block, step)

    def _move(self, block: Block, step: int, rows: Int[torch.Tensor, " row"] | None = None) -> None:
        """Move a block, or some of its rows, with its first `step` generated tokens to buffers with room for more."""
        moved = []
        for old in block.rest:
            size, n_kv, _, d_head = old.shape
            room = block.width + _allocated(old, step, self.most)
            new = old.new_empty(size if rows is None else len(rows), n_kv, room, d_head)
            filled = old[:, :, : block.width + step]
            new[:, :, : block.width + step] = filled if rows is None else filled[rows]
            moved.append(new)
        block.rest = moved[0], moved[1]

    def write(
        self,
        step: int,
        k: Float[torch.Tensor, "row kv_head d_head"],
        v: Float[torch.Tensor, "row kv_head d_head"],
    ) -> None:
        """Set the keys and values of generated token `step` of all rows."""
        for block, span in self.spans():
            block.rest[0][:, :, block.width + step] = k[span]
            block.rest[1][:, :, block.width + step] = v[span]


def _pairs(tensors: Sequence[torch.Tensor]) -> list[Pair]:
    return list(zip(tensors[::2], tensors[1::2], strict=True))


def _allocated(like: torch.Tensor, step: int, most: int) -> int:
    return most if like.device.type == "cpu" else columns_for(step, most)


class HistoryKV:
    """The clean model's keys and values of generated tokens at one layer, for the histories that are needed there.

    `places` holds the places of the most recently needed histories.
    """

    def __init__(self, like: torch.Tensor, most: int) -> None:
        """`like` is any [*, kv_head, *, d_head]; `most` tokens are generated at most."""
        # Keys and values in one tensor take half as many calls to copy.
        self._both = like.new_zeros(2, 0, like.shape[1], 0, like.shape[3])
        self._most = most
        self.places = np.empty(0, dtype=np.int64)
        self._numbers = np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return self._both.shape[1]

    @property
    def pair(self) -> Pair:
        """Keys and values [place, kv_head, generated, d_head]."""
        return self._both[0], self._both[1]

    def state(self, n_written: int) -> Iterator[torch.Tensor]:
        """All tensors, with the first `n_written` generated tokens, in the order that `restored` takes."""
        yield self._both[:, :, :, :n_written]
        yield from map(torch.from_numpy, (self.places, self._numbers))

    @classmethod
    def restored(cls, tensors: Sequence[torch.Tensor], most: int) -> HistoryKV:
        both, places, numbers = tensors
        made = cls(both[0], most)
        made._both, made.places, made._numbers = both, places.cpu().numpy(), numbers.cpu().numpy()
        return made

    def need(self, numbers: np.ndarray, split: Split, steps: int) -> Int[np.ndarray, "2 copied"] | None:
        """Give each of the histories a place, with room for token number `steps`.

        Histories that stay keep their places, and places of histories that are no longer needed are freed.

        Returns:
            The places to `copy` from and to, of histories that begin as copies of others; ``None`` if nothing changed.
        """
        self._shrink()
        if not len(split.target) and steps < self._both.shape[3] and np.array_equal(numbers, self._numbers):
            return None
        place_of, source_of = np.full((2, 1 + max(a.max(initial=0) for a in (numbers, self._numbers, *split))), -1)
        place_of[self._numbers], source_of[split.target] = self.places, split.source
        copied = source_of[numbers] >= 0
        places = np.where(copied, -1, place_of[numbers])
        sources, new = place_of[source_of[numbers[copied]]], places < 0
        used = np.zeros(len(self), dtype=bool)
        # A place that is copied from is not given away.
        used[places[~new]] = used[sources] = True
        free, n_new, room = np.flatnonzero(~used), int(new.sum()), len(self)
        if n_new > len(free):
            room = max(int(used.sum()) + n_new, room + room // 4)
            free = np.concatenate([free, np.arange(len(self), room)])
        places[new] = free[:n_new]
        self._resize(room, steps)
        self._numbers, self.places = numbers, places
        return np.stack([sources, places[copied]])

    def copy(self, places: Int[torch.Tensor, "2 copied"], steps: int) -> None:
        """Copy the first `steps` tokens between the places that `need` returned."""
        if places.shape[1]:
            written = self._both[:, :, :, :steps]
            written[:, places[1]] = written[:, places[0]]

    def _shrink(self) -> None:
        """Drop unused places once they are more than half."""
        if len(self) > 2 * len(self.places) + 8:
            self._both = self._both[:, torch.from_numpy(self.places).to(self._both.device)]
            self.places = np.arange(len(self.places))

    def write(self, places: torch.Tensor, step: int, k: torch.Tensor, v: torch.Tensor) -> None:
        """Set the keys and values [history, kv_head, d_head] of generated token `step`."""
        self.pair[0][places, :, step] = k
        self.pair[1][places, :, step] = v

    def _resize(self, room: int, step: int) -> None:
        _, size, n_kv, columns, d_head = self._both.shape
        more = columns if step < columns else columns_for(step, self._most)
        if room == size and more == columns:
            return
        grown = self._both.new_zeros(2, room, n_kv, more, d_head)
        grown[:, :size, :, :columns] = self._both
        self._both = grown
