"""Exchange tensors between two models in place, and undo it exactly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

__all__ = ["exchanged"]

_CHUNK = 1 << 20
"""Numbers copied aside at a time."""

TensorPair = tuple[torch.Tensor, torch.Tensor]


@contextmanager
def exchanged(pairs: Sequence[TensorPair], alpha: float = 1.0) -> Iterator[None]:
    """Context in which each pair (a, b) holds (a + α(b − a), b + α(a − b)).

    At α = 1 the two swap their contents bit for bit, with no copy beyond a chunk, and at α = 0 nothing is touched; in
    between both are copied aside. On leaving, also by an exception, every tensor holds its old bits again.
    """
    if alpha == 0:
        yield
        return
    if alpha == 1:
        _swap(pairs)
        try:
            yield
        finally:
            _swap(pairs)
        return
    saved = [(a.detach().clone(), b.detach().clone()) for a, b in pairs]
    try:
        with torch.no_grad():
            for (a, b), (old_a, old_b) in zip(pairs, saved, strict=True):
                a.copy_(_between(old_a, old_b, alpha))
                b.copy_(_between(old_b, old_a, alpha))
        yield
    finally:
        with torch.no_grad():
            for (a, b), (old_a, old_b) in zip(pairs, saved, strict=True):
                a.copy_(old_a)
                b.copy_(old_b)


def _between(here: torch.Tensor, there: torch.Tensor, alpha: float) -> torch.Tensor:
    """here + α(there − here), in float32 at least."""
    wide = torch.promote_types(here.dtype, torch.float32)
    start = here.to(wide)
    return start + alpha * (there.to(start) - start)


def _chunks(pairs: Sequence[TensorPair]) -> Iterator[TensorPair]:
    for a, b in pairs:
        rows = max(1, _CHUNK * a.shape[0] // max(1, a.numel()))
        yield from zip(a.split(rows), b.split(rows), strict=True)


@torch.no_grad()
def _swap(pairs: Sequence[TensorPair]) -> None:
    """Swap contents; interrupted half-way (Ctrl-C), what was swapped is swapped back before the interrupt goes on."""
    done: list[TensorPair] = []
    saved: TensorPair | None = None
    pair: TensorPair | None = None
    try:
        for pair in _chunks(pairs):
            saved = (pair[0].clone(), pair[1].clone())
            pair[0].copy_(saved[1])
            pair[1].copy_(saved[0])
            done.append(pair)
            saved = None
    except BaseException:
        if saved is not None and pair is not None:
            # Whether or not this chunk was reached, its old contents are known.
            pair[0].copy_(saved[0])
            pair[1].copy_(saved[1])
            if done and done[-1] is pair:
                done.pop()
        for a, b in reversed(done):
            old = a.clone()
            a.copy_(b)
            b.copy_(old)
        raise
