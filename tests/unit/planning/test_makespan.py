"""The simulated time of a spread sweep, against cases worked out by hand."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lensprune.ablation.variants import CLEAN
from lensprune.cli import main
from lensprune.errors import UserError
from lensprune.planning.makespan import GroupTime, makespan, recorded_times
from lensprune.runs.records import CellKey
from lensprune.runs.store import RunStore
from tests.helpers.made_cells import skip, spec, table


def test_one_worker_takes_the_sum() -> None:
    groups = [GroupTime("a", "default", 8, 2.0), GroupTime("b", "default", 4, 5.0)]
    found = makespan(groups, 1, load_seconds=10)
    assert found.seconds == 10 + 8 * 2 + 4 * 5
    assert found.efficiency == 1


def test_two_workers_by_hand() -> None:
    # Of 8 cells units of 2, 2, 1, 1, 1, 1 are dealt out; 3 seconds come on top of each.
    found = makespan([GroupTime("a", "default", 8, 1.0, 3.0)], 2)
    # One worker: 5, 9, 13; the other: 5, 9, 13.
    assert (found.units, found.seconds, found.work) == (6, 13, 26)


@pytest.mark.parametrize("workers", [1, 2, 7, 64, 1000])
def test_between_the_bounds(workers: int) -> None:
    groups = [GroupTime("a", "default", 81, 4.0, 2.0), GroupTime("b", "generate", 81, 31.0, 9.0)]
    found = makespan(groups, workers, load_seconds=60)
    longest = max(group.cell_seconds + group.unit_seconds for group in groups)
    assert found.seconds >= 60 + max(found.work / workers, longest)
    # Dealing out in order is at most the longest unit behind the perfect split (Graham 1966).
    largest = math.ceil(162 / (2 * workers))
    assert found.seconds <= 60 + found.work / workers + largest * 31.0 + 9.0


def test_one_long_group_is_spread_over_all_workers() -> None:
    # Most of the work is in one of nine groups; a share of all cells would leave it to two of the workers.
    groups = [GroupTime(str(i), "default", 200, 10.0 if i == 2 else 0.1, 0.5) for i in range(9)]
    assert makespan(groups, 8).efficiency > 0.9


def test_more_workers_than_cells_change_nothing() -> None:
    groups = [GroupTime("a", "default", 20, 3.0, 1.0)]
    assert makespan(groups, 20).seconds == makespan(groups, 500).seconds == 4.0


def test_recorded_times_are_those_between_files(tmp_path: Path) -> None:
    its_spec = spec(tasks=("t", "u"))
    with RunStore.writing(tmp_path / "run", its_spec) as run:
        for i, task in enumerate(("t", "u")):
            for j, variant in enumerate((CLEAN, skip(0), skip(1))):
                key = CellKey(variant.name, task, "default")
                run.write(key, table(variant, [True, False], task=task))
                at = 1000.0 + (10 * j if i == 0 else 20 + 7 * (j + 1))
                os.utime(run._files[key], (at, at))
    # The first cell of all has nothing before it.
    assert recorded_times(tmp_path / "run") == [GroupTime("t", "default", 2, 10.0), GroupTime("u", "default", 3, 7.0)]


@pytest.mark.parametrize(
    ("groups", "workers", "load", "said"),
    [
        ([], 2, 0.0, "no cells"),
        ([GroupTime("a", "p", 3, 1.0)], 0, 0.0, "workers 0"),
        ([GroupTime("a", "p", 3, -1.0)], 1, 0.0, "below zero"),
        ([GroupTime("a", "p", 3, 1.0)], 1, -5.0, "below zero"),
    ],
)
def test_what_can_not_be_simulated(groups: list[GroupTime], workers: int, load: float, said: str) -> None:
    with pytest.raises(UserError, match=said):
        makespan(groups, workers, load)


def test_a_run_of_one_cell_has_no_times(tmp_path: Path) -> None:
    with RunStore.writing(tmp_path / "run", spec()) as run:
        run.write(CellKey("clean", "t", "default"), table(CLEAN, [True]))
    with pytest.raises(UserError, match="has 1 finished cells"):
        recorded_times(tmp_path / "run")


def test_a_plan_says_what_workers_would_take(
    family_folder: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["plan", "--model", str(family_folder("llama")), "--task", "facts", "--limit", "4", "--shots", "0"]
    speed = ["--flops", "1e11", "--bandwidth", "1e10"]
    assert main([*asked, *speed, "--executor", "ray", "--workers", "3"]) == 0
    assert "with 3 workers" in capsys.readouterr().out
    assert main([*asked, *speed]) == 0
    assert "workers" not in capsys.readouterr().out
    assert main([*asked, *speed, "--workers", "3"]) == 2
    assert "choose executor ray" in capsys.readouterr().err
