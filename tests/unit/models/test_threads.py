"""Models that several threads load."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel
from transformers.initialization import no_tie_weights

from lensprune.models import load, load_model
from tests.helpers.tiny_models import folder


def test_threads_that_load_at_once_leave_weights_untied() -> None:
    """The library's contexts, entered and left in turn as two threads may do it."""
    tied = PreTrainedModel.tie_weights
    first, second = no_tie_weights(), no_tie_weights()
    try:
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        second.__exit__(None, None, None)
        assert PreTrainedModel.tie_weights is not tied
    finally:
        PreTrainedModel.tie_weights = tied


def test_models_are_loaded_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    tied, original = PreTrainedModel.tie_weights, load._load
    loading = most = 0

    def slowly(name: str | Path, options: Any) -> Any:
        nonlocal loading, most
        loading += 1
        most = max(most, loading)
        time.sleep(0.05)
        try:
            return original(name, options)
        finally:
            loading -= 1

    monkeypatch.setattr(load, "_load", slowly)
    with ThreadPoolExecutor(3) as pool:
        bridges = list(pool.map(load_model, [folder("gpt2")] * 3))
    assert (len(bridges), most) == (3, 1)
    assert PreTrainedModel.tie_weights is tied
