"""Whether memory ran out: then less at a time may do, where another error would only come again."""

from __future__ import annotations

import re

import torch

__all__ = ["out_of_memory"]


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on an accelerator or on the CPU."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    # On the CPU torch raises a plain RuntimeError.
    return isinstance(error, RuntimeError) and bool(re.search(r"not enough memory|can't allocate memory", str(error)))
