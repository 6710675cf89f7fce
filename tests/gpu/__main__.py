"""Run the checks on this machine's GPU, one line for each: ``python -m tests.gpu``.

Results go to ``tests/gpu/results.json`` after each check, with the card and the versions; ``--write PAGE`` puts them as
a table into a page, which says that nothing was run where no file is.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import signal
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from tests.gpu.checks import CHECKS, Check
from tests.helpers.markdown import write_between

RESULTS = Path(__file__).with_name("results.json")
PACKAGES = ("lensprune", "torch", "transformers", "transformer-lens")
NOT_RUN = "Not run on this version."
GRACE = 20
"""Seconds after the alarm until the process is ended: a call that hangs inside CUDA hears no alarm."""


class TookTooLong(Exception):
    """A check's alarm."""


def _ring(signum: int, frame: FrameType | None) -> None:
    raise TookTooLong


def run_check(name: str, check: Check, device: str) -> dict[str, Any]:
    """Its result: whether it passed, seconds, and what it measured or why it failed."""
    start = time.perf_counter()
    signal.signal(signal.SIGALRM, _ring)
    signal.alarm(check.seconds)
    faulthandler.dump_traceback_later(check.seconds + GRACE, exit=True)
    try:
        measured, why = check.run(device), None
    except TookTooLong:
        measured, why = {}, f"more than {check.seconds} s"
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        measured, why = {}, f"{type(error).__name__}: {lines[0]}"
        print("\n".join(lines[1:]), file=sys.stderr)
    finally:
        signal.alarm(0)
        faulthandler.cancel_dump_traceback_later()
    return {"passed": why is None, "seconds": time.perf_counter() - start, "measured": measured, "why": why}


def shown(value: Any) -> str:
    """Numbers in a few digits."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {shown(own)}" for name, own in value.items())
    if isinstance(value, float):
        return f"{value:.3g}"
    return str(value)


def table(path: Path) -> str:
    """Markdown of stored results, of this version alone."""
    stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    if stored is None or stored["versions"]["lensprune"] != version("lensprune"):
        return NOT_RUN
    versions = ", ".join(f"{name} {number}" for name, number in stored["versions"].items())
    lines = [f"{stored['card']}, {versions}; {stored['date']}.", "", "| check | | measured |", "|---|---|---|"]
    for name, result in stored["checks"].items():
        outcome = "passed" if result["passed"] else f"failed: {result['why']}"
        lines.append(f"| {CHECKS[name].summary} | {outcome} | {shown(result['measured'])} |")
    missing = [name for name in CHECKS if name not in stored["checks"]]
    return "\n".join([*lines, *(f"| {CHECKS[name].summary} | not run | |" for name in missing)])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__)
    parser.add_argument("--check", action="append", choices=list(CHECKS), help="only this one; may be repeated")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--write", type=Path, help="only write the stored results into this Markdown file")
    arguments = parser.parse_args()
    if arguments.write is not None:
        write_between(arguments.write, "gpu", table(arguments.out))
        return 0
    if not torch.cuda.is_available():
        print("there is no GPU here that torch can use", file=sys.stderr)
        return 2
    os.environ.setdefault("LENSPRUNE_OFFLINE", "1")
    results: dict[str, Any] = {}
    document = {
        "card": torch.cuda.get_device_name(),
        "versions": {name: version(name) for name in PACKAGES},
        "date": datetime.now(UTC).date().isoformat(),
        "checks": results,
    }
    for name in arguments.check or list(CHECKS):
        results[name] = result = run_check(name, CHECKS[name], "cuda")
        outcome = shown(result["measured"]) if result["passed"] else f"FAILED: {result['why']}"
        print(f"{name}: {result['seconds']:.1f} s, {outcome}", flush=True)
        arguments.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0 if all(result["passed"] for result in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
