"""Means over pairs with their standard errors, accumulated batch by batch."""

from __future__ import annotations

import torch
from jaxtyping import Float

__all__ = ["MeanSE"]


class MeanSE:
    """Mean of `n_values` quantities over pairs, and the standard error of each mean (NaN for a single pair)."""

    def __init__(self, n_values: int) -> None:
        self._sum = torch.zeros(n_values, dtype=torch.float64)
        self._squares = torch.zeros(n_values, dtype=torch.float64)
        self._count = torch.zeros(n_values, dtype=torch.float64)

    def add(self, values: Float[torch.Tensor, "value pair"], start: int = 0) -> None:
        """Add pairs of the quantities `start`, `start` + 1, …"""
        numbers = values.detach().cpu().double()
        where = slice(start, start + len(numbers))
        self._sum[where] += numbers.sum(1)
        self._squares[where] += numbers.square().sum(1)
        self._count[where] += numbers.shape[1]

    @property
    def mean(self) -> list[float]:
        """Mean of each quantity."""
        return (self._sum / self._count).tolist()

    @property
    def standard_error(self) -> list[float]:
        """Standard deviation over pairs (n − 1) over √n."""
        centred = (self._squares - self._sum.square() / self._count).clamp(min=0)
        return (centred / (self._count - 1) / self._count).sqrt().tolist()
