"""Memory that loading takes beside the weights it leaves: pages of the files that they are converted from."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from lensprune.models.sources.bundled import BUNDLED
from lensprune.models.sources.resolve import model_kind

__all__ = ["loading_bytes"]

_STORED = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def loading_bytes(name_or_path: str | Path, dtype: torch.dtype) -> int:
    """Bytes at the peak of loading on the CPU beyond the loaded weights; 0 for a repository of the hub, whose files may
    not be here.

    Safetensors of the model's own type are used where the file is mapped into memory. Of another type, and in a GGUF
    file, every tensor is read from its mapped file and converted, and the mapping stays until all are. One file or many
    makes no difference.

    Raises:
        UserError: nothing of that name.
    """
    path = Path(name_or_path).expanduser()
    match model_kind(name_or_path):
        case "bundled":
            return _converted(BUNDLED[str(name_or_path)].folder().glob("*.safetensors"), dtype)
        case "folder":
            return _converted(path.glob("*.safetensors"), dtype)
        case "gguf":
            return path.stat().st_size
        case "hub":
            return 0


def _converted(files: Iterable[Path], dtype: torch.dtype) -> int:
    """Bytes of tensors that are stored in another type than `dtype`."""
    total = 0
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118
                    tensor = opened.get_slice(name)
                    if tensor.get_dtype() != _STORED.get(dtype):
                        total += _bytes(tensor.get_shape(), tensor.get_dtype())
        except (SafetensorError, OSError):
            # A damaged file is refused when the model is loaded, with its reason.
            continue
    return total


def _bytes(shape: list[int], stored: str) -> int:
    bits = "".join(c for c in stored.partition("_")[0] if c.isdigit())
    count = 1
    for side in shape:
        count *= side
    return count * max(1, int(bits or 8) // 8)
