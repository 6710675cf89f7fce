"""A registry that a test can add to, and a folder of made-up rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from lensprune.tasks import registry, task_names
from tests.helpers.rows import RowsWriter


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The registered tasks, where what a test adds is forgotten after it."""
    task_names()
    builders = dict(registry._builders)
    monkeypatch.setattr(registry, "_builders", builders)
    return builders


@pytest.fixture
def write_rows(tmp_path: Path) -> RowsWriter:
    """Function: folder, split, rows → the written file below ``tmp_path``."""

    def write(folder: str, split: str, rows: Iterable[Mapping[str, Any]]) -> Path:
        path = tmp_path / folder / f"{split}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write
