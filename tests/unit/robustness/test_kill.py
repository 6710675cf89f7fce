"""Killed at any moment and resumed, a sweep has the records of one that was left alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.killing import POINTS


@pytest.mark.slow
def test_killed_at_any_moment_and_resumed(
    family_folder: Callable[[str], Path], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    command = [sys.executable, "-m", "tests.helpers.killing", str(family_folder("llama")), str(tmp_path)]
    one_thread = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "LENSPRUNE_OFFLINE": "1"}
    done = subprocess.run(
        command, env={**os.environ, **one_thread}, capture_output=True, text=True, check=False, timeout=550
    )
    assert done.returncode == 0, done.stderr[-3000:]
    counts = json.loads(done.stdout.splitlines()[-1])
    assert counts["moments"] >= 20, counts
    assert set(POINTS) <= set(counts["killed_at"]), counts
    # Some were killed with work behind them and work before them, else nothing is shown.
    assert len(set(counts["cells_at_death"])) >= 5, counts
    for what in ("records_lost", "records_twice", "torn_taken_for_whole", "different_records", "set_aside"):
        assert counts[what] == 0, counts
    record_property("tried", counts["moments"])
    record_property("records_lost", counts["records_lost"])
