"""The plug-in is registered in each of these modules, and taken back after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.plugin import registered


@pytest.fixture(scope="module", autouse=True)
def plugin() -> Iterator[None]:
    with registered():
        yield


@pytest.fixture(scope="module")
def folder(family_folder: Callable[[str], Path]) -> Path:
    return family_folder("llama")
