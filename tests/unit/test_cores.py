"""Threads are chosen by the cores that are free, by numbers that are given here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lensprune import cores as module
from lensprune.cores import Cores, core_quota, cores, use_free_cores


@pytest.mark.parametrize(
    ("usable", "busy", "threads"),
    [(2, 0.0, 2), (2, 0.4, 2), (2, 0.6, 1), (2, 1.0, 1), (2, 2.0, 1), (16, 3.2, 13), (16, 40.0, 1), (1, 0.0, 1)],
)
def test_as_many_threads_as_free_cores(usable: int, busy: float, threads: int) -> None:
    assert Cores(usable, busy).threads == threads


def test_what_is_said_at_the_start() -> None:
    assert Cores(2, 0.3).note() is None
    one = Cores(2, 1.0).note()
    assert one is not None
    assert "1.0 of 2 cores busy: computing with 1 thread (OMP_NUM_THREADS sets another number)" in one
    assert "longer" not in one
    none_free = Cores(2, 2.0).note()
    assert none_free is not None
    assert none_free.endswith("it will take longer than planned")


def stat(*worked: tuple[int, int]) -> str:
    """Lines of /proc/stat: ticks of work and of idling per core; the guest's ticks are part of the user's."""
    lines = [f"cpu{i} {work} 0 0 {idle} 0 0 0 0 {work} 0" for i, (work, idle) in enumerate(worked)]
    return "\n".join(["cpu  1 1 1 1 0 0 0 0 0 0", *lines, "intr 12 0"])


def looked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, before: str, after: str, allowed: list[int]) -> Cores:
    file = tmp_path / "stat"
    file.write_text(before)
    monkeypatch.setattr(module, "_STAT", file)
    monkeypatch.setattr(module, "_allowed", lambda: allowed)
    monkeypatch.setattr(module.time, "sleep", lambda seconds: file.write_text(after))
    return cores()


def test_what_others_do_is_read_core_by_core(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "core_quota", lambda: None)
    before, after = stat((100, 100), (500, 0), (0, 0), (7, 7)), stat((130, 100), (500, 30), (15, 15), (7, 37))
    assert looked(monkeypatch, tmp_path, before, after, [0, 1, 2, 3]) == Cores(4, 1.5)
    # Cores that the process may not use don't count.
    assert looked(monkeypatch, tmp_path, before, after, [1, 3]) == Cores(2, 0.0)


def test_a_quota_bounds_the_cores_and_what_others_do_elsewhere_is_not_in_the_way(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "core_quota", lambda: 2.0)
    before = stat(*[(0, 0)] * 8)
    quiet = stat(*[(30, 0)] * 5, *[(0, 30)] * 3)
    assert looked(monkeypatch, tmp_path, before, quiet, list(range(8))) == Cores(2, 0.0)
    crowded = stat(*[(30, 0)] * 7, (0, 30))
    assert looked(monkeypatch, tmp_path, before, crowded, list(range(8))) == Cores(2, 1.0)


def test_without_proc_the_load_average_stands_for_what_is_busy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "_STAT", tmp_path / "missing")
    monkeypatch.setattr(module, "core_quota", lambda: None)
    monkeypatch.setattr(module, "_allowed", lambda: [0, 1, 2, 3])
    monkeypatch.setattr(module.os, "getloadavg", lambda: (1.2, 9.0, 9.0), raising=False)
    assert cores() == Cores(4, 1.2)


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.cfs_quota_us": "200000\n", "cpu.cfs_period_us": "100000\n"}, 2.0),
        ({"cpu.cfs_quota_us": "-1\n", "cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_the_control_groups_quota(files: dict[str, str], quota: float | None) -> None:
    def read(path: Path) -> str:
        if path.name not in files:
            raise FileNotFoundError(path)
        return files[path.name]

    assert core_quota(read) == quota


def test_a_number_that_the_user_set_is_kept() -> None:
    environment = {"OMP_NUM_THREADS": "7"}
    assert use_free_cores(lambda: Cores(8, 8.0), environment) is None
    assert environment == {"OMP_NUM_THREADS": "7"}


def test_torch_takes_fewer_threads_and_never_more(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr(module, "core_quota", lambda: None)
    try:
        torch.set_num_threads(3)
        assert use_free_cores(lambda: Cores(8, 6.0), {}) is not None
        assert torch.get_num_threads() == 2
        assert use_free_cores(lambda: Cores(8, 3.0), {}) is not None
        assert torch.get_num_threads() == 2
        assert use_free_cores(lambda: Cores(8, 0.0), {}) is None
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_torch_that_comes_later_reads_the_number(monkeypatch: pytest.MonkeyPatch) -> None:
    environment: dict[str, str] = {}
    monkeypatch.delitem(module.sys.modules, "torch")
    use_free_cores(lambda: Cores(4, 2.0), environment)
    assert environment == {"OMP_NUM_THREADS": "2"}
