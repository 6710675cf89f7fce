"""Executors by name."""

from __future__ import annotations

import warnings
from typing import Any

from lensprune.engine.base import Executor
from lensprune.engine.forked import ForkedExecutor
from lensprune.engine.hooked import HookedExecutor
from lensprune.engine.layers import UnsupportedByFastPath
from lensprune.engine.limits import DecodeLimits
from lensprune.engine.memory import budgets, gpu_limits
from lensprune.errors import unknown_name
from lensprune.models import as_hooked_model

__all__ = ["EXECUTORS", "make_executor"]

EXECUTORS: tuple[str, ...] = ("forked", "hooked")


def make_executor(name: str, model: Any, max_tokens: int | None = None, memory: str | None = None) -> Executor:
    """Build an executor.

    A model that ``forked`` cannot run gets the hooked executor, with a warning that says why; the executor's `name` is
    that of the one that runs.

    Args:
        name: one of `EXECUTORS`.
        model: anything that `as_hooked_model` accepts.
        max_tokens: tokens per batch; ``None`` takes the executor's default, on a GPU one for its free memory.
        memory: how much a run may take besides the model's weights, like ``"4GB"``; it sets the batch budgets, of
            which `max_tokens` overrides its own.

    Raises:
        UserError: unknown name; an amount of memory that cannot be read, or is too small for the model.
    """
    if name not in EXECUTORS:
        raise unknown_name("executor", name, EXECUTORS)
    hooked = as_hooked_model(model)
    asked = budgets(hooked.facts, max_tokens, memory)
    options: dict[str, int] = {}
    more: dict[str, int] = {}
    if isinstance(asked, DecodeLimits):
        options, more = {"max_tokens": asked.tokens}, {"max_rows": asked.rows, "max_kv_bytes": asked.kv_bytes}
    elif asked is not None:
        options = {"max_tokens": asked}
    if name == "forked":
        default = gpu_limits(hooked.facts) if memory is None else None
        if default is not None:
            more = {"max_rows": default.rows, "max_kv_bytes": default.kv_bytes, "max_tokens": default.tokens}
        try:
            return ForkedExecutor(hooked, **{**more, **options})
        except UnsupportedByFastPath as reason:
            warnings.warn(
                f"the forked executor cannot run this model, the hooked one takes over: {reason}", stacklevel=2
            )
    return HookedExecutor(hooked, **options)
