"""Executors by name."""

from __future__ import annotations

import warnings
from typing import Any

from lensprune.engine.base import Executor
from lensprune.engine.forked import ForkedExecutor
from lensprune.engine.hooked import HookedExecutor
from lensprune.engine.layers import UnsupportedByFastPath
from lensprune.errors import unknown_name
from lensprune.models import as_hooked_model

__all__ = ["EXECUTORS", "make_executor"]

EXECUTORS: tuple[str, ...] = ("forked", "hooked")


def make_executor(name: str, model: Any, max_tokens: int | None = None) -> Executor:
    """Build an executor.

    A model that ``forked`` cannot run gets the hooked executor, with a warning that says why; the executor's `name` is
    that of the one that runs.

    Args:
        name: one of `EXECUTORS`.
        model: anything that `as_hooked_model` accepts.
        max_tokens: tokens per batch; ``None`` takes the executor's default.

    Raises:
        UserError: unknown name.
    """
    if name not in EXECUTORS:
        raise unknown_name("executor", name, EXECUTORS)
    hooked = as_hooked_model(model)
    options = {} if max_tokens is None else {"max_tokens": max_tokens}
    if name == "forked":
        try:
            return ForkedExecutor(hooked, **options)
        except UnsupportedByFastPath as reason:
            warnings.warn(
                f"the forked executor cannot run this model, the hooked one takes over: {reason}", stacklevel=2
            )
    return HookedExecutor(hooked, **options)
