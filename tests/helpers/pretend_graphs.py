"""CUDA graphs of the pretend GPU: work is recorded, and computed anew when a graph is replayed.

A real GPU doesn't do the work while it is recorded. Here it is done, since shapes must be known, but its results are
made useless when recording ends.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

__all__ = ["PretendGraph", "at_work", "capturing", "computed", "install", "may_not_wait", "recorded", "waited"]

Work = Callable[[], Sequence[Any]]


class PretendGraph:
    """Stands in for ``torch.cuda.CUDAGraph``."""

    capturing: PretendGraph | None = None
    replaying = False
    count: Callable[[str], None]

    def __init__(self) -> None:
        self.work: list[tuple[Work, Sequence[Any]]] = []
        self._captured = False

    def capture_begin(self, pool: Any = None, capture_error_mode: str = "global") -> None:
        if PretendGraph.capturing is not None or self._captured:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        if PretendStream.current is DEFAULT:
            raise RuntimeError("CUDA graphs must be captured on a non-default stream.")
        PretendGraph.capturing = self

    def capture_end(self) -> None:
        if PretendGraph.capturing is not self:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
        PretendGraph.capturing, self._captured = None, True
        for _, results in self.work:
            for tensor in results:
                if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                    tensor.fill_(torch.nan)

    def replay(self) -> None:
        if PretendGraph.capturing is not None or not self._captured:
            raise RuntimeError("CUDA error: the graph was not captured, or another one is")
        PretendGraph.count("cuda.graph")
        PretendGraph.replaying = True
        try:
            for work, results in self.work:
                for old, new in zip(results, work(), strict=True):
                    if isinstance(old, torch.Tensor) and old is not new:
                        old.copy_(new)
        finally:
            PretendGraph.replaying = False


def capturing() -> bool:
    return PretendGraph.capturing is not None


_sync_debug_mode = ["default"]


def may_not_wait() -> bool:
    return capturing() or _sync_debug_mode[0] == "error"


def waited(cause: str) -> None:
    """Refuse that the host waits, where it may not."""
    if capturing():
        raise RuntimeError(f"CUDA error: {cause}: operation not permitted when stream is capturing")
    if _sync_debug_mode[0] == "error":
        raise RuntimeError(f"called a synchronizing CUDA operation ({cause})")


def at_work() -> bool:
    """Whether a graph is captured or replayed."""
    return capturing() or PretendGraph.replaying


def computed(work: Callable[[], Any], held: Callable[[Any], Sequence[Any]]) -> Any:
    """What `work` gives; `held` turns it into CPU tensors, and whatever else."""
    made = work()
    if PretendGraph.capturing is not None:
        PretendGraph.capturing.work.append((lambda: held(work()), held(made)))
    return made


def recorded(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """What an operator gives, of CPU tensors."""
    aliases = [own.alias_info for own in func._schema.returns]
    if any(alias is not None and not alias.is_write for alias in aliases):
        # Views need not be made again.
        return func(*args, **kwargs)
    return computed(lambda: func(*args, **kwargs), _as_list)


def _as_list(out: Any) -> list[Any]:
    return list(out) if isinstance(out, (tuple, list)) else [out]


class PretendStream:
    """Stands in for ``torch.cuda.Stream``."""

    current: PretendStream

    def __init__(self, device: Any = None) -> None:
        pass

    def wait_stream(self, other: PretendStream) -> None:
        pass


DEFAULT = PretendStream.current = PretendStream()


@contextlib.contextmanager
def _entered(stream: PretendStream) -> Iterator[None]:
    before, PretendStream.current = PretendStream.current, stream
    try:
        yield
    finally:
        PretendStream.current = before


def install(count: Callable[[str], None]) -> None:
    """Put them into ``torch.cuda``; `count` takes the name of what is launched."""
    PretendGraph.count = staticmethod(count)
    names = {
        "CUDAGraph": PretendGraph,
        "Stream": PretendStream,
        "stream": _entered,
        "current_stream": lambda device=None: PretendStream.current,
        "graph_pool_handle": lambda: (0, 1),
        "get_sync_debug_mode": lambda: _sync_debug_mode[0],
        "set_sync_debug_mode": lambda mode: _sync_debug_mode.__setitem__(0, mode),
    }
    for name, stand_in in names.items():
        setattr(torch.cuda, name, stand_in)
