"""The plan of one decode step: running rows, and the histories that they need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

__all__ = ["Step", "sent_at_once"]


@dataclass(frozen=True)
class Step:
    """The running rows of one step, sorted by first changed layer, and the histories that they need.

    `histories` are sorted by the highest first changed layer of their rows; `history_of` is each row's index into
    them, and `sample` one row per history. At layer l, the first `n_rows[l]` rows are changed there or below, and the
    last `n_histories[l]` histories are needed.
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

    def needed(self, layer: int) -> slice:
        """The histories that are needed at the layer."""
        return slice(len(self.histories) - int(self.n_histories[layer]), None)


def sent_at_once(groups: Sequence[Sequence[np.ndarray]], device: torch.device | str) -> list[list[torch.Tensor]]:
    """Groups of index arrays as tensors on a device, in one transfer: each transfer waits for the device."""
    arrays = [array for group in groups for array in group]
    joined = torch.from_numpy(np.concatenate([array.reshape(-1) for array in arrays])).to(device)
    pieces = iter(joined.split([array.size for array in arrays]))
    return [[next(pieces).view(array.shape) for array in group] for group in groups]
