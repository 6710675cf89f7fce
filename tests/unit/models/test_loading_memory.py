"""What loading takes beside the weights: the bytes that are converted, in one file or many."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import lensprune as lp
from lensprune.costs.memory import Memory
from lensprune.models.loading_memory import loading_bytes
from tests.helpers.families import save_folder


def weights(folder: Path, dtype: torch.dtype, files: int) -> Path:
    for i in range(files):
        save_file({f"w{i}": torch.zeros(10, 12 // files, dtype=dtype)}, folder / f"model-{i}.safetensors")
    return folder


@pytest.mark.parametrize("files", [1, 3])
def test_only_what_is_converted_counts(files: int, tmp_path: Path) -> None:
    folder = weights(tmp_path, torch.bfloat16, files)
    assert loading_bytes(folder, torch.float32) == 240
    assert loading_bytes(folder, torch.bfloat16) == 0


def test_a_gguf_file_is_mapped_whole(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"x" * 1234)
    assert loading_bytes(file, torch.float32) == 1234


def test_the_peak_is_loading_or_running_and_not_both() -> None:
    assert Memory(weights=100, activations=5, cache=3, logits=2, process=50, loading=40).total == 190
    assert Memory(weights=100, activations=50, cache=3, logits=2, process=50, loading=40).total == 205


def test_a_plan_counts_it(tmp_path: Path) -> None:
    folder = save_folder("llama", tmp_path)
    converted = loading_bytes(folder, torch.bfloat16)
    assert converted > 0
    plan = lp.plan(folder, "facts", "continuation", limit=1, dtype="bfloat16", device="cpu", flops=1e12)
    assert plan.memory.loading == converted
    assert "files while loading" in str(plan)


def test_damaged_files_count_for_nothing(tmp_path: Path) -> None:
    """Loading refuses them with the reason."""
    huge = (2**62).to_bytes(8, "little") + b"{}"
    for name, data in {"empty": b"", "junk": b"\x01" * 50, "huge": huge}.items():
        (tmp_path / f"{name}.safetensors").write_bytes(data)
    save_file({"a": torch.zeros(4, 2, dtype=torch.bfloat16)}, tmp_path / "whole.safetensors")
    assert loading_bytes(tmp_path, torch.float32) == 16
