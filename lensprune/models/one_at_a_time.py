"""A lock under which models are built."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from threading import RLock
from typing import ParamSpec, TypeVar

__all__ = ["one_at_a_time"]

P = ParamSpec("P")
R = TypeVar("R")

_BUILDING = RLock()


def one_at_a_time(function: Callable[P, R]) -> Callable[P, R]:
    """Let only one thread run any function decorated with this.

    While transformers builds a model, it replaces methods of its classes (``PreTrainedModel.tie_weights`` and the
    initialisers) and puts them back at the end. Two threads that build models at once put back each other's
    replacements, and from then on no model of the process ties its weights.
    """

    @wraps(function)
    def alone(*args: P.args, **kwargs: P.kwargs) -> R:
        with _BUILDING:
            return function(*args, **kwargs)

    return alone
