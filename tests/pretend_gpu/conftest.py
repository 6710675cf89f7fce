"""Without the pretend GPU, whose place is a process of its own, these tests are left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import PRETEND


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what lies in this folder unless the process has the pretend GPU."""
    if PRETEND:
        return
    mark = pytest.mark.skip(reason="needs LENSPRUNE_TEST_DEVICE=pretend: make test-pretend-gpu")
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(mark)
