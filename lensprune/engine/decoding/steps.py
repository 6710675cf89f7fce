"""The plan of one decode step: running rows, the histories that they need, and indices for each layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Int

from lensprune.engine.edits import LayerEdits

__all__ = ["LayerIndex", "Step", "sent_at_once"]


@dataclass(frozen=True)
class Step:
    """The running rows of one step, sorted by first changed layer, and the histories that they need.

    `histories` are sorted by the highest first changed layer of their rows; `history_of` is each row's index into
    them, and `sample` one row per history. The tokens of layer l's call are the last `n_histories[l]` histories, which
    are needed there, and then the first `n_rows[l]` rows, which are changed at or below it: a range of all histories
    and rows, so that what belongs to the tokens need not be gathered.
    """

    rows: np.ndarray
    histories: np.ndarray
    history_of: np.ndarray
    sample: np.ndarray
    n_rows: np.ndarray
    n_histories: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray, first: np.ndarray, history: np.ndarray, n_layers: int) -> Step:
        numbers, from_end = np.unique(history[::-1], return_index=True)
        # Rows are sorted by first changed layer, so a history's last row has the highest.
        last = len(rows) - 1 - from_end
        order = np.argsort(first[last], kind="stable")
        place = np.empty(numbers.max() + 1, dtype=np.int64)
        place[numbers[order]] = np.arange(len(order))
        layers = np.arange(n_layers)
        return cls(
            rows=rows,
            histories=numbers[order],
            history_of=place[history],
            sample=last[order],
            n_rows=np.searchsorted(first, layers, side="right"),
            n_histories=len(order) - np.searchsorted(first[last][order], layers, side="left"),
        )

    def tokens(self, layer: int) -> slice:
        """The tokens of a layer's call, among all histories and rows."""
        n = len(self.histories)
        return slice(n - int(self.n_histories[layer]), n + int(self.n_rows[layer]))

    def history_at(self, layer: int, rows: np.ndarray | slice) -> np.ndarray:
        """The history of each of `rows`, among those that are needed at the layer."""
        return self.history_of[rows] - (len(self.histories) - int(self.n_histories[layer]))


@dataclass(frozen=True)
class LayerIndex:
    """Where the tokens of one layer's call come from.

    `tokens`: their range among the step's (see `Step`); `is_computed`, `computed`: those whose contribution is not
    replaced as a whole; `edits` of these; `entering`: the history of each row that changes at this very layer, among
    those of the layer below; the other fields as in `LayerTokens`.
    """

    tokens: slice
    is_computed: np.ndarray
    edits: LayerEdits | None
    entering: Int[torch.Tensor, " entering"]
    computed: Int[torch.Tensor, " computed"]
    diverged: Int[torch.Tensor, " diverged"]
    starting: Int[torch.Tensor, " starting"]
    histories: Int[torch.Tensor, " history"]
    blocks: list[tuple[torch.Tensor, torch.Tensor]]

    @classmethod
    def of(
        cls, tokens: slice, is_computed: np.ndarray, edits: LayerEdits | None, indices: Sequence[torch.Tensor]
    ) -> LayerIndex:
        """Build from an array for the edits' `zeros_apart`, those for `entering` to `histories`, in field order, and a
        pair per block."""
        zeroed, entering, computed, diverged, starting, histories, *blocks = indices
        if edits is not None and len(zeroed):
            edits = replace(edits, heads=[], zeroed=zeroed)
        pairs = list(zip(blocks[::2], blocks[1::2], strict=True))
        return cls(tokens, is_computed, edits, entering, computed, diverged, starting, histories, pairs)

    @property
    def n_computed_first(self) -> int | None:
        """How many tokens are computed, if they are the first ones."""
        n = int(self.is_computed.sum())
        return n if self.is_computed[:n].all() else None


def sent_at_once(groups: Sequence[Sequence[np.ndarray]], device: torch.device | str) -> list[list[torch.Tensor]]:
    """Groups of index arrays as tensors on a device, in one transfer: each transfer waits for the device."""
    arrays = [array for group in groups for array in group]
    joined = torch.from_numpy(np.concatenate([array.reshape(-1) for array in arrays])).to(device)
    pieces = iter(joined.split([array.size for array in arrays]))
    return [[next(pieces).view(array.shape) for array in group] for group in groups]
