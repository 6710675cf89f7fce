"""Depth bands: the first 30% of layers, the middle, and the last 30% (arXiv 2510.02091)."""

from __future__ import annotations

__all__ = ["BANDS", "band_of"]

BANDS = ("first", "middle", "last")


def band_of(layer: int, n_layers: int) -> str:
    """The band of a layer: ``first`` below 30% of the depth, ``last`` from 70% on, else ``middle``."""
    if 10 * layer < 3 * n_layers:
        return "first"
    return "last" if 10 * layer >= 7 * n_layers else "middle"
