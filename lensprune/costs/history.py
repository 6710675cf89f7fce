"""How much longer sweeps took on this machine than the cost model said, kept in the cache for the next plan.

One small JSON file, replaced whole. It decides no number of a run: what can't be read counts as absent, and what can't
be written is left out. ``LENSPRUNE_REMEMBER_SPEED=0`` neither reads nor writes it.
"""

from __future__ import annotations

import json
import logging
import math
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lensprune.costs.shape import ModelShape
from lensprune.errors import UserError
from lensprune.models.cache import cache_root
from lensprune.output.files import write_atomically

__all__ = ["Correction", "SpeedHistory", "SpeedKey", "device_name"]

logger = logging.getLogger(__name__)

VERSION = 1
SWITCH = "LENSPRUNE_REMEMBER_SPEED"
SHORTEST = 1.0
"""Work of fewer seconds says nothing: most of it is starting."""
_KEPT = 0.5
"""Of what was known so far, beside what is new."""
_NEAR = 2
"""Models up to so many doublings larger or smaller stand in for one that was not measured."""


@dataclass(frozen=True)
class SpeedKey:
    """What a measured time depends on: `kind` is ``score`` or ``generate``; `size` the base-2 logarithm of the FLOPs of
    one token, rounded."""

    device: str
    dtype: str
    executor: str
    kind: str
    size: int

    @classmethod
    def of(cls, shape: ModelShape, *, device: str, dtype: str, executor: str, generates: bool) -> SpeedKey:
        """The key of one kind of work on a device of this machine, such as ``cpu`` or ``cuda:0``."""
        size = round(math.log2(max(1, shape.flops_per_token)))
        return cls(device_name(device), dtype, executor, "generate" if generates else "score", size)

    @property
    def where(self) -> str:
        return "|".join((self.device, self.dtype, self.executor, self.kind))


@dataclass(frozen=True)
class Correction:
    """Measured time over planned time, and from how many sweeps; 1 from none."""

    factor: float = 1.0
    sweeps: int = 0


class SpeedHistory:
    """The file at `path`; ``None``: nothing is known or kept."""

    def __init__(self, path: Path | None) -> None:
        self.path = path

    @classmethod
    def of_machine(cls) -> SpeedHistory:
        """That of this user on this machine, unless it is switched off."""
        if os.environ.get(SWITCH, "1").strip().lower() in ("0", "no", "off", "false"):
            return cls(None)
        return cls(cache_root() / "speed.json")

    def correction(self, key: SpeedKey) -> Correction:
        """What is known of such work by models of about this size."""
        known = self._read().get(key.where, {})
        near = [size for size in known if abs(size - key.size) <= _NEAR]
        if not near:
            return Correction()
        planned, taken, sweeps = known[min(near, key=lambda size: abs(size - key.size))]
        return Correction(taken / planned, sweeps)

    def add(self, key: SpeedKey, planned: float, taken: float) -> None:
        """Keep that work planned as so many seconds, uncorrected, took so many; short work is left out."""
        if self.path is None or taken < SHORTEST or planned <= 0:
            return
        everything = self._read()
        known = everything.setdefault(key.where, {})
        before, spent, sweeps = known.get(key.size, (0.0, 0.0, 0))
        known[key.size] = (_KEPT * before + planned, _KEPT * spent + taken, sweeps + 1)
        text = json.dumps({"version": VERSION, "measured": everything}, indent=1) + "\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        except (OSError, UserError) as error:
            logger.info("the speed of this machine is not kept: %s", error)

    def _read(self) -> dict[str, dict[int, tuple[float, float, int]]]:
        """By `SpeedKey.where` and size: seconds planned, seconds taken, and the number of sweeps."""
        try:
            data: Any = None if self.path is None else json.loads(self.path.read_text(encoding="utf-8"))
            if data is None or data["version"] != VERSION:
                return {}
            return {
                str(where): {int(size): _times(times) for size, times in sizes.items()}
                for where, sizes in data["measured"].items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return {}


def _times(times: Any) -> tuple[float, float, int]:
    planned, taken, sweeps = times
    numbers = float(planned), float(taken), int(sweeps)
    if not all(math.isfinite(number) and number > 0 for number in numbers):
        raise ValueError(f"{times} are not times")
    return numbers


def device_name(device: str) -> str:
    """The processor's or GPU's own name, as far as the system tells it."""
    if device.startswith("cuda") and torch.cuda.is_available():
        return torch.cuda.get_device_name(torch.device(device))
    return f"{device.partition(':')[0]} {platform.machine()} {_processor()}".strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
