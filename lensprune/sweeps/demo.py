"""The main job on the bundled model and bundled tasks, end to end."""

from __future__ import annotations

from pathlib import Path

from lensprune.results.run import Run
from lensprune.sweeps.run import sweep
from lensprune.sweeps.selection import VariantSelection
from lensprune.tasks.bundled import DEMO_TASKS

__all__ = ["DEMO_LIMIT", "DEMO_MODEL", "demo"]

DEMO_MODEL = "smollm2-135m"
DEMO_LIMIT = 12


def demo(out: str | Path = "runs/demo", *, progress: bool = True) -> Run:
    """Skip each layer of `DEMO_MODEL` in turn, on the bundled `DEMO_TASKS`, under all three protocols.

    Call it again with the same folder to resume.
    """
    return sweep(
        DEMO_MODEL,
        tasks=DEMO_TASKS,
        protocols=("default", "continuation", "generate"),
        variants=VariantSelection("layers", "skip"),
        limit=DEMO_LIMIT,
        out=out,
        device="cpu",
        progress=progress,
        command="lensprune demo",
    )
