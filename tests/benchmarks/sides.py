"""Each side in a process of its own, one at work while the other waits, so that times and memory do not mix."""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.benchmarks.works import Setting, Work

__all__ = ["Side", "started"]


class Side:
    """A handle on a side's process: `call` runs one of its methods there and waits."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self.facts: dict[str, int] = self.call("load")
        """Numbers of items, variants and requests, where the side knows them."""

    def call(self, method: str, *args: Any) -> Any:
        self._pipe.send((method, args))
        try:
            return self._pipe.recv()
        except EOFError:
            raise RuntimeError(f"{method} failed in the other process, whose traceback stands above") from None


@contextmanager
def started(kind: str, work: Work, setting: Setting, data_dir: Path) -> Iterator[Side]:
    """A side that is loaded and ready; its process ends with the context."""
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, kind, work, setting, data_dir))
    process.start()
    # Held by the child alone, so that its death is seen as the end of the pipe.
    theirs.close()
    try:
        yield Side(pipe)
    finally:
        pipe.close()
        process.join(timeout=30)
        if process.is_alive():
            process.terminate()


def _serve(pipe: Connection, kind: str, work: Work, setting: Setting, data_dir: Path) -> None:
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    import torch

    torch.set_num_threads(setting.threads)
    side: Any = None
    while True:
        try:
            method, args = pipe.recv()
        except EOFError:
            return
        if method == "load":
            side = _side(kind, work)(work, setting, data_dir)
            pipe.send(getattr(side, "facts", {}))
        elif method == "peak_memory":
            pipe.send(torch.cuda.max_memory_allocated() if setting.on_gpu else _peak_rss())
        else:
            pipe.send(getattr(side, method)(*args))


def _side(kind: str, work: Work) -> Any:
    if kind == "lm-eval":
        from tests.benchmarks.peer import LmEvalSide

        return LmEvalSide
    from tests.benchmarks.ours import HookedSide, OurSide, ScreenedSide

    if kind == "hooked":
        return HookedSide
    return OurSide if work.screen is None else ScreenedSide


def _peak_rss() -> int:
    """Bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # The process's own peak; ru_maxrss begins with that of the process it was started from.
        [line] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
