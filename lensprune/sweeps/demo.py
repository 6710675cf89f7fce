"""The main job on the bundled model and bundled tasks, end to end."""

from __future__ import annotations

from pathlib import Path

from lensprune.results.run import Run
from lensprune.sweeps.run import sweep
from lensprune.sweeps.selection import VariantSelection
from lensprune.tasks.bundled import DEMO_TASKS

__all__ = ["DEMO_LIMIT", "DEMO_MODEL", "DEMO_PROTOCOLS", "demo"]

DEMO_MODEL = "smollm2-135m"
DEMO_PROTOCOLS = ("continuation", "generate")
"""The likelihood of the answer's text, and generated text; ``default`` would add half the time."""
DEMO_LIMIT = 48
"""Items per task: enough to find critical layers on each of them, in a few minutes on two cores."""


def demo(out: str | Path = "runs/demo", *, progress: bool = True) -> Run:
    """Skip each layer of `DEMO_MODEL` in turn, on the bundled `DEMO_TASKS`, under `DEMO_PROTOCOLS`.

    Call it again with the same folder to resume.
    """
    return sweep(
        DEMO_MODEL,
        tasks=DEMO_TASKS,
        protocols=DEMO_PROTOCOLS,
        variants=VariantSelection("layers", "skip"),
        limit=DEMO_LIMIT,
        out=out,
        device="cpu",
        progress=progress,
        command="lensprune demo",
    )
