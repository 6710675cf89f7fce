"""Run requests under variants."""

from lensprune.engine.base import Executor, ProgressCallback, VariantResponses
from lensprune.engine.forked import ForkedExecutor
from lensprune.engine.hooked import HookedExecutor
from lensprune.engine.registry import EXECUTORS, make_executor

__all__ = [
    "EXECUTORS",
    "Executor",
    "ForkedExecutor",
    "HookedExecutor",
    "ProgressCallback",
    "VariantResponses",
    "make_executor",
]
