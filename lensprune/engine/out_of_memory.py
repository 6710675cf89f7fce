"""Recognises out-of-memory errors, after which smaller batches may succeed; other errors would only recur."""

from __future__ import annotations

import gc
import re

import torch

__all__ = ["out_of_memory", "release_cached"]

_SAID = re.compile(
    r"out of memory|not enough memory|can't allocate memory|_STATUS_ALLOC_FAILED|OUT_OF_(DEVICE|HOST)_MEMORY"
    r"|Invalid buffer size"
)
"""In plain RuntimeErrors: CUDA's and HIP's own ("CUDA error: out of memory"), cuBLAS's and cuDNN's, Triton's ("Triton
Error [CUDA]: out of memory"; its "out of resource" is a kernel's size, which no smaller batch changes), MPS's, XPU's,
and the CPU allocator's."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on an accelerator or on the CPU."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and _SAID.search(str(error)) is not None


def release_cached() -> None:
    """Release memory that allocators keep cached: tensors of another size may not fit beside it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()
    if torch.xpu.is_available():
        torch.xpu.empty_cache()
