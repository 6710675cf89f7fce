"""Sweeps in processes that are killed with SIGKILL: ``python -m tests.helpers.killing MODEL FOLDER``.

One warm process forks a child for every sweep, so that a moment costs the sweep and not the start of the libraries.
The counts go to standard output as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

import lensprune as lp
import lensprune.results.outputs as outputs
from lensprune.errors import UserError
from lensprune.output.files import TEMPORARY_PREFIX
from lensprune.runs.folder import SPEC_FILE
from lensprune.runs.spec import SweepSpec
from lensprune.runs.store import RunStore
from tests.helpers.sweeps import sweep

TASKS = ("facts", "arithmetic")
PROTOCOLS = ("continuation", "generate")
POINTS = ("torn write", "written", "synced", "renamed")
LONGEST = 300
"""Seconds after which a child counts as hung."""


@dataclass
class Counts:
    """What happened over all moments; `killed_at` counts by where the process was."""

    moments: int = 0
    killed_at: dict[str, int] = field(default_factory=dict)
    cells_at_death: list[int] = field(default_factory=list)
    records_lost: int = 0
    records_twice: int = 0
    torn_taken_for_whole: int = 0
    different_records: int = 0
    set_aside: int = 0


def resume_or_sweep(model: str, out: Path) -> None:
    """`resume` where a spec is there, as its user would."""
    if (out / SPEC_FILE).exists():
        lp.resume(out, progress=False)
    else:
        sweep(model, out, limit=2)


def fork(work: Callable[[], None]) -> int:
    """Process id of a child that does `work`, with one thread: a pool of several does not survive a fork."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            torch.set_num_threads(1)
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def wait(pid: int, until: float = LONGEST) -> int:
    """Exit code of a child, negative for a signal; a child that runs longer than `until` seconds is killed."""
    end = time.monotonic() + until
    while time.monotonic() < end:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def die_at(point: str, number: int) -> None:
    """Let this process kill itself at the `number`-th time that it comes to `point` of writing a file."""
    seen = 0

    def here(name: str) -> None:
        nonlocal seen
        if name == point:
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)

    write_bytes, fsync, replace = Path.write_bytes, os.fsync, os.replace

    def writing(self: Path, data: bytes) -> int:
        if point == "torn write":
            write_bytes(self, data[: len(data) // 2])
        here("torn write")
        count = write_bytes(self, data)
        here("written")
        return count

    def syncing(descriptor: int) -> None:
        fsync(descriptor)
        here("synced")

    def renaming(source: Any, target: Any) -> None:
        replace(source, target)
        here("renamed")

    Path.write_bytes, os.fsync, os.replace = writing, syncing, renaming  # type: ignore[assignment,method-assign]


def record_files(out: Path) -> dict[str, bytes]:
    paths = sorted((out / "records").glob("*.parquet"))
    return {path.name: path.read_bytes() for path in paths if not path.name.startswith(TEMPORARY_PREFIX)}


def rows(out: Path) -> list[dict[str, Any]]:
    run = lp.Run.load(out)
    frame = run.records().drop(columns="metrics")
    found: list[dict[str, Any]] = frame.astype(object).where(frame.notna(), None).to_dict("records")
    return found


def check_folder(out: Path, whole: dict[str, bytes], counts: Counts) -> int:
    """Count what a killed process left that is not a whole cell; return the number of whole ones."""
    if not (out / SPEC_FILE).exists():
        return 0
    SweepSpec.from_json((out / SPEC_FILE).read_text(encoding="utf-8"))
    left = record_files(out)
    for name, data in left.items():
        counts.torn_taken_for_whole += data != whole.get(name)
    return len(left)


def kill_once(model: str, out: Path, moment: Callable[[], tuple[str, int]]) -> str:
    where, pid = moment()
    code = wait(pid)
    if code not in (0, -signal.SIGKILL):
        raise RuntimeError(f"a sweep in {out} ended with {code}")
    return where if code else "not in time"


def run_moments(model: str, folder: Path, timed: int, seed: int) -> Counts:
    """Kill sweeps at `timed` random times and at every point of writing, then resume them and compare.

    Raises:
        RuntimeError: a sweep ended otherwise than it should.
    """
    choose = random.Random(seed)
    counts = Counts()
    # Drawing the figure takes longer than the sweep; that it is whole or absent is `write_atomically`'s work as well.
    outputs.shown_analyses = lambda outcomes, saved: []
    if wait(fork(lambda: sweep(model, folder / "whole", limit=2))) != 0:
        raise RuntimeError("the uninterrupted sweep failed")
    whole, expected = record_files(folder / "whole"), rows(folder / "whole")
    began = time.monotonic()
    if wait(fork(lambda: sweep(model, folder / "timed", limit=2))) != 0:
        raise RuntimeError("the timed sweep failed")
    length = time.monotonic() - began
    plans: list[tuple[str, float | int]] = [("any", choose.uniform(0, length)) for _ in range(timed)]
    plans += [(point, choose.randint(1, len(whole))) for point in POINTS for _ in range(3)]
    for i, (where, when) in enumerate(plans):
        out = folder / str(i)

        def moment(where: str = where, when: float = when, out: Path = out) -> tuple[str, int]:
            def work() -> None:
                if where != "any":
                    die_at(where, int(when))
                resume_or_sweep(model, out)

            pid = fork(work)
            if where == "any":
                time.sleep(when)
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    return "not in time", pid
            return where, pid

        place = kill_once(model, out, moment)
        counts.moments += place != "not in time"
        if place == "not in time" and len(plans) < 4 * timed:
            # Sweeps are faster than the timed one was when the machine has less to do.
            plans.append((where, when / 2))
        counts.killed_at[place] = counts.killed_at.get(place, 0) + 1
        stored = check_folder(out, whole, counts)
        counts.cells_at_death.append(stored)
        before = record_files(out)
        if wait(fork(lambda out=out: resume_or_sweep(model, out))) != 0:  # type: ignore[misc]
            raise RuntimeError(f"resuming {out} failed after a kill: {where} {when}")
        after, found = record_files(out), rows(out)
        counts.records_lost += sum(after.get(name) != data for name, data in before.items())
        counts.records_lost += max(0, len(expected) - len(found))
        counts.records_twice += max(0, len(found) - len(expected))
        counts.different_records += sum(a != b for a, b in zip(expected, found, strict=False))
        counts.set_aside += len(list((out / "damaged").glob("*")))
        if not RunStore.is_complete(out):
            raise UserError(f"{out} is not complete after it was resumed")
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--timed", type=int, default=14)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    lp.load_model(options.model, device="cpu")
    print(json.dumps(asdict(run_moments(options.model, options.folder, options.timed, options.seed))))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
