"""How many processor cores are free, so that a command uses that many threads and no more.

Threads of one matrix product wait for each other: two of them that share a core with other processes are many times
slower than one that has a core to itself.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Cores", "core_quota", "cores", "use_free_cores"]

THREADS = "OMP_NUM_THREADS"
_SAMPLE_SECONDS = 0.3
_STAT = Path("/proc/stat")
_QUOTAS = (Path("/sys/fs/cgroup/cpu.max"), Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"))
_PERIOD = Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")
_IDLE, _IO_WAIT = 3, 4
"""Places in a line of /proc/stat; what else a core did was work."""


@dataclass(frozen=True)
class Cores:
    """Cores that this process may use, and how many of them other processes keep busy (a fraction counts)."""

    usable: int
    busy: float

    @property
    def threads(self) -> int:
        """Free cores, at least one; a core counts as free that is idle more than half of the time."""
        return max(1, min(self.usable, round(self.usable - self.busy)))

    def note(self) -> str | None:
        """What to say at the start; ``None`` where all cores are free."""
        if self.threads >= self.usable:
            return None
        named = "thread" if self.threads == 1 else "threads"
        waits = "; it will take longer than planned" if self.usable - self.busy < self.threads - 0.5 else ""
        return (
            f"other processes keep {self.busy:.1f} of {self.usable} cores busy: computing with {self.threads} {named} "
            f"({THREADS} sets another number){waits}"
        )


def core_quota(read: Callable[[Path], str] = Path.read_text) -> float | None:
    """Cores' worth of time that the process's control group grants; ``None`` without a limit."""
    for path in _QUOTAS:
        try:
            fields = read(path).split()
            period = fields[1] if len(fields) > 1 else read(_PERIOD)
            quota, span = float(fields[0]), float(period)
        except (OSError, ValueError, IndexError):
            # No such group, or "max": no limit.
            continue
        if quota > 0 and span > 0:
            return quota / span
    return None


def cores(sample_seconds: float = _SAMPLE_SECONDS) -> Cores:
    """Look at the machine for a moment, in which this process does nothing.

    Without /proc/stat the load average of the last minute says how many are busy; without that, all cores count as
    free.
    """
    allowed = _allowed()
    quota = core_quota()
    usable = len(allowed) if quota is None else max(1, min(len(allowed), int(quota)))
    try:
        before = _worked(_STAT.read_text())
        time.sleep(sample_seconds)
        after = _worked(_STAT.read_text())
    except OSError:
        busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
        return Cores(usable, min(busy, len(allowed)))
    busy = sum(_share(before[core], after[core]) for core in allowed if core in before and core in after)
    # What others do on cores beyond a quota is not in the way.
    return Cores(usable, max(0.0, busy - (len(allowed) - usable)))


def use_free_cores(
    look: Callable[[], Cores] = cores, environment: MutableMapping[str, str] | None = None
) -> str | None:
    """Let torch use one thread per free core; returns what to say about it, if anything.

    Nothing is done where ``OMP_NUM_THREADS`` is set already, or all cores are free.
    """
    environment = os.environ if environment is None else environment
    if THREADS in environment:
        return None
    free = look()
    if free.threads < free.usable:
        _set_threads(free.threads, environment)
    elif core_quota() is not None:
        # torch counts the machine's cores, and knows of no quota.
        _set_threads(free.usable, environment)
    return free.note()


def _set_threads(threads: int, environment: MutableMapping[str, str]) -> None:
    torch = sys.modules.get("torch")
    if torch is None:
        environment[THREADS] = str(threads)
    else:
        torch.set_num_threads(min(threads, torch.get_num_threads()))


def _allowed() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _worked(stat: str) -> Mapping[int, tuple[int, int]]:
    """Of each core its ticks of work, and all its ticks, since the machine started."""
    ticks_of = {}
    for line in stat.splitlines():
        name, *ticks = line.split()
        if name.startswith("cpu") and name[3:].isdigit():
            # The ninth and tenth number are parts of the first and second.
            numbers = [int(tick) for tick in ticks[:8]]
            idle = numbers[_IDLE] + numbers[_IO_WAIT]
            ticks_of[int(name[3:])] = (sum(numbers) - idle, sum(numbers))
    return ticks_of


def _share(before: tuple[int, int], after: tuple[int, int]) -> float:
    worked, passed = after[0] - before[0], after[1] - before[1]
    return worked / passed if passed > 0 else 0.0
