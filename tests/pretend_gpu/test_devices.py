"""Which GPU a run lay on is no part of it, and a model over two GPUs gives the numbers of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import lensprune as lp
from lensprune.ablation import CLEAN, each_layer
from lensprune.engine import HookedExecutor
from lensprune.models import as_hooked_model, load_model
from lensprune.runs.store import RunStore
from tests.helpers.pretend_gpu import settings
from tests.helpers.sweeps import sweep
from tests.helpers.tiny_models import folder, generation_requests, likelihood_requests
from tests.helpers.tolerances import assert_records_agree, assert_responses_agree


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "n_devices", 2)


def test_a_run_on_the_second_gpu_resumes_on_any(
    two_gpus: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"tasks": ("facts",), "protocols": ("continuation",), "limit": 2}
    whole = sweep(folder("llama"), tmp_path / "whole", device="cuda:0", **options)
    write, written = RunStore.write, 0

    def stop_after_one(self: RunStore, *args: Any) -> None:
        nonlocal written
        if written:
            raise KeyboardInterrupt
        write(self, *args)
        written += 1

    monkeypatch.setattr(RunStore, "write", stop_after_one)
    with pytest.raises(KeyboardInterrupt):
        sweep(folder("llama"), tmp_path / "run", device="cuda:1", **options)
    monkeypatch.setattr(RunStore, "write", write)
    monkeypatch.setattr(settings, "n_devices", 1)
    again = lp.resume(tmp_path / "run", progress=False)
    assert again.spec.device == "cuda"
    assert_records_agree(again.records(), whole.records(), 1e-7)


def test_layers_over_two_gpus(two_gpus: None) -> None:
    split = as_hooked_model(load_model(folder("llama"), n_devices=2))
    places = {str(own.device) for own in split.module.parameters()}
    assert places == {"cuda:0", "cuda:1"}
    one = as_hooked_model(load_model(folder("llama"), device="cuda:0"))
    requests = [*likelihood_requests(one)[:6], *generation_requests(one, 3)[:2]]
    variants = [CLEAN, *each_layer(one)]
    found, expected = (list(HookedExecutor(own).run(requests, variants)) for own in (split, one))
    assert_responses_agree(one, requests, found, expected)
