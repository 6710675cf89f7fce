"""Exchange tensors between two models in place, and undo it exactly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

__all__ = ["replaced"]

_CHUNK = 1 << 20
"""Number of values copied aside at a time."""

TensorPair = tuple[torch.Tensor, torch.Tensor]


@contextmanager
def replaced(pairs: Sequence[TensorPair], alpha: float = 1.0) -> Iterator[None]:
    """Context manager in which each pair (a, b) becomes (a + α(b − a), b + α(a − b)).

    At α = 1 the two swap their contents bit for bit, copying at most one chunk; at α = 0 nothing is touched; in between
    both are copied aside. On exit, even after an exception or an interrupt on the way in or out, every tensor has its
    original bits again.
    """
    if alpha == 0:
        yield
        return
    if alpha == 1:
        chunks = list(_chunks(pairs))
        _swap(chunks)
        try:
            yield
        finally:
            _swap(chunks, back=True)
        return
    saved = [(a.detach().clone(), b.detach().clone()) for a, b in pairs]
    try:
        with torch.no_grad():
            for (a, b), (old_a, old_b) in zip(pairs, saved, strict=True):
                a.copy_(_between(old_a, old_b, alpha))
                b.copy_(_between(old_b, old_a, alpha))
        yield
    finally:
        try:
            _restore(pairs, saved)
        except BaseException:
            _restore(pairs, saved)
            raise


@torch.no_grad()
def _restore(pairs: Sequence[TensorPair], saved: Sequence[TensorPair]) -> None:
    for (a, b), (old_a, old_b) in zip(pairs, saved, strict=True):
        a.copy_(old_a)
        b.copy_(old_b)


def _between(here: torch.Tensor, there: torch.Tensor, alpha: float) -> torch.Tensor:
    """here + α(there − here), computed in float32 or wider."""
    wide = torch.promote_types(here.dtype, torch.float32)
    start = here.to(wide)
    return start + alpha * (there.to(start) - start)


def _chunks(pairs: Sequence[TensorPair]) -> Iterator[TensorPair]:
    for a, b in pairs:
        rows = max(1, _CHUNK * a.shape[0] // max(1, a.numel()))
        yield from zip(a.split(rows), b.split(rows), strict=True)


@torch.no_grad()
def _swap(chunks: Sequence[TensorPair], *, back: bool = False) -> None:
    """Swap contents. Interrupted half-way (Ctrl-C), it first restores the old contents everywhere,
    or with `back` the new ones: in either case those from before any exchange."""
    done = 0
    saved: tuple[int, torch.Tensor, torch.Tensor] | None = None
    try:
        for index, (a, b) in enumerate(chunks):
            saved = (index, a.clone(), b.clone())
            a.copy_(saved[2])
            b.copy_(saved[1])
            done = index + 1
    except BaseException:
        if saved is not None and saved[0] == done:
            # However far this chunk got, its old contents are known.
            a, b = chunks[done]
            a.copy_(saved[1])
            b.copy_(saved[2])
        for a, b in chunks[done:] if back else chunks[:done]:
            old = a.clone()
            a.copy_(b)
            b.copy_(old)
        raise
