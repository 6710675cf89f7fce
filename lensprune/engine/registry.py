"""Executors by name."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from lensprune.errors import LensPruneError, UserError
from lensprune.registry import Registry

if TYPE_CHECKING:
    from lensprune.engine.base import Executor
    from lensprune.engine.limits import DecodeLimits
    from lensprune.models.base import AnyModel, HookedModel

__all__ = ["BACKENDS", "ExecutorInfo", "executor_info", "executor_names", "make_executor", "register_executor"]

BACKENDS = ("ray",)
"""Values accepted in place of an executor's name when cells are distributed to workers."""

Build = Callable[["HookedModel", "int | DecodeLimits | None"], "Executor"]


@dataclass(frozen=True)
class ExecutorInfo:
    """One executor.

    `build` makes it from a model and budgets: `DecodeLimits`, tokens per batch, or ``None`` for its defaults.
    `shares_work`: whether the clean model runs once for all variants, as in the forked executor; `plan` estimates work
    and memory accordingly, and otherwise as for the hooked executor.
    """

    name: str
    summary: str
    build: Build
    shares_work: bool = False


_EXECUTORS: Registry[ExecutorInfo] = Registry("executor")

B = TypeVar("B", bound=Build)


def register_executor(name: str, *, shares_work: bool = False) -> Callable[[B], B]:
    """Register the decorated function as an executor: it takes a model and budgets and returns the executor.

    The first line of the function's docstring describes the executor. Its numbers must equal the hooked executor's.

    Args:
        name: name of the executor; the executor's own `name` must be the same.
        shares_work: whether `plan` counts shared prefixes once, as for the forked executor.

    Raises:
        UserError: the name is taken, or isn't made of letters, digits, _ and -.

    Examples:
        >>> from lensprune.engine import HookedExecutor, executor_names
        >>> @lp.register_executor("small-batches")
        ... def small_batches(model, budget):
        ...     '''The reference, with few tokens per batch.'''
        ...     executor = HookedExecutor(model, max_tokens=256)
        ...     executor.name = "small-batches"
        ...     return executor
        >>> "small-batches" in executor_names()
        True
    """

    def register(build: B) -> B:
        if name in BACKENDS:
            raise UserError(
                f"executor name {name!r} is reserved: it selects the backend that distributes cells to workers"
            )
        summary = (build.__doc__ or "").strip().partition("\n")[0]
        _EXECUTORS.add(name, ExecutorInfo(name, summary, build, shares_work), build)
        return build

    return register


def executor_info(name: str) -> ExecutorInfo:
    """The executor called `name`.

    Raises:
        UserError: there is none.
    """
    return _EXECUTORS.get(name)


def executor_names() -> tuple[str, ...]:
    """Names of all executors, built-in ones first."""
    return _EXECUTORS.names()


def make_executor(name: str, model: AnyModel, max_tokens: int | None = None, memory: str | None = None) -> Executor:
    """Build an executor.

    A model that ``forked`` cannot run gets the hooked executor, with a warning that says why; the returned executor's
    `name` says which one it is.

    Args:
        name: one of `executor_names`.
        model: anything that `as_hooked_model` accepts.
        max_tokens: tokens per batch; ``None`` takes the executor's default, which on a GPU depends on its free memory.
        memory: how much a run may use besides the model's weights, like ``"4GB"``; sets all batch budgets, of which
            `max_tokens` overrides the tokens.

    Raises:
        UserError: unknown name; an amount of memory that cannot be read, or is too small for the model.
    """
    info = executor_info(name)
    from lensprune.engine.memory import budgets
    from lensprune.models import as_hooked_model

    hooked = as_hooked_model(model)
    executor = info.build(hooked, budgets(hooked.facts, max_tokens, memory))
    if executor.name not in executor_names():
        raise LensPruneError(
            f"executor {name!r} calls itself {executor.name!r}: the names must be equal, or runs can't be resumed"
        )
    return executor


@register_executor("forked", shares_work=True)
def _forked(model: HookedModel, budget: int | DecodeLimits | None) -> Executor:
    """Fast: every variant resumes from the clean model."""
    return _by_forking(model, budget, graphs=False)


@register_executor("forked-graphs", shares_work=True)
def _forked_graphs(model: HookedModel, budget: int | DecodeLimits | None) -> Executor:
    """Forked, with decode steps that replay CUDA graphs; not yet measured on a GPU."""
    return _by_forking(model, budget, graphs=True)


def _by_forking(model: HookedModel, budget: int | DecodeLimits | None, *, graphs: bool) -> Executor:
    from lensprune.engine.forked import ForkedExecutor
    from lensprune.engine.layers import UnsupportedByFastPath
    from lensprune.engine.limits import DecodeLimits
    from lensprune.engine.memory import gpu_limits

    limits = budget
    if not isinstance(limits, DecodeLimits) and (free := gpu_limits(model.facts)) is not None:
        limits = free if limits is None else replace(free, tokens=limits)
    options: dict[str, int] = {}
    if isinstance(limits, DecodeLimits):
        options = {"max_tokens": limits.tokens, "max_rows": limits.rows, "max_kv_bytes": limits.kv_bytes}
    elif limits is not None:
        options = {"max_tokens": limits}
    try:
        return ForkedExecutor(model, **options, graphs=graphs)
    except UnsupportedByFastPath as reason:
        warnings.warn(
            f"the forked executor cannot run this model; using the hooked executor instead: {reason}", stacklevel=4
        )
    return _hooked(model, budget)


@register_executor("hooked")
def _hooked(model: HookedModel, budget: int | DecodeLimits | None) -> Executor:
    """The reference: TransformerLens hooks, one variant at a time."""
    from lensprune.engine.hooked import HookedExecutor
    from lensprune.engine.limits import DecodeLimits

    if budget is None:
        return HookedExecutor(model)
    return HookedExecutor(model, budget.tokens if isinstance(budget, DecodeLimits) else budget)
