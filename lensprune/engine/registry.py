"""Executors by name."""

from __future__ import annotations

from typing import Any

from lensprune.engine.base import Executor
from lensprune.engine.hooked import HookedExecutor
from lensprune.errors import unknown_name
from lensprune.models import as_hooked_model

__all__ = ["EXECUTORS", "make_executor"]

EXECUTORS: tuple[str, ...] = ("hooked",)


def make_executor(name: str, model: Any, max_tokens: int | None = None) -> Executor:
    """Build an executor.

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
    return HookedExecutor(hooked) if max_tokens is None else HookedExecutor(hooked, max_tokens)
