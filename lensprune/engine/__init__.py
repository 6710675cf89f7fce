"""Run requests under variants."""

from typing import TYPE_CHECKING

from lensprune.registry import lazy_names

if TYPE_CHECKING:
    from lensprune.engine.base import AnswerCallback, Executor, ProgressCallback, VariantResponses
    from lensprune.engine.forked import ForkedExecutor
    from lensprune.engine.hooked import HookedExecutor
    from lensprune.engine.registry import (
        ExecutorInfo,
        executor_info,
        executor_names,
        make_executor,
        register_executor,
    )

__all__ = [
    "AnswerCallback",
    "Executor",
    "ExecutorInfo",
    "ForkedExecutor",
    "HookedExecutor",
    "ProgressCallback",
    "VariantResponses",
    "executor_info",
    "executor_names",
    "make_executor",
    "register_executor",
]

__getattr__ = lazy_names(__name__, ("registry", "base", "hooked", "forked"))
