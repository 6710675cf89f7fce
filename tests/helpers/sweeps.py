"""Sweeps over a tiny model's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lensprune as lp
from lensprune.sweeps.selection import VariantSelection

__all__ = ["sweep"]


def sweep(folder: str | Path, out: Path | None = None, **options: Any) -> lp.Run:
    """`lp.sweep` on the CPU without a progress bar: by default 3 items, no examples, each layer skipped."""
    defaults: dict[str, Any] = {
        "tasks": ("facts", "arithmetic"),
        "protocols": ("continuation", "generate"),
        "variants": VariantSelection("layers", "skip"),
        "limit": 3,
        "shots": 0,
        "device": "cpu",
        "progress": False,
    }
    return lp.sweep(str(folder), out=out, **{**defaults, **options})
