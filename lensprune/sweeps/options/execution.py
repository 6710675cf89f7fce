"""How the model is loaded and rows are run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

from lensprune.engine.registry import BACKENDS, executor_names
from lensprune.errors import UserError
from lensprune.models.base import BosPolicy
from lensprune.registry import in_words
from lensprune.sweeps.options.declare import Group, between, one_of, option, whole_number

MAX_WORKERS = 10_000


def _check_batch(tokens: int) -> None:
    if tokens < 1:
        raise UserError(f"batch tokens {tokens} can't hold a token: expected 1 or more")


def _check_memory(size: str) -> None:
    from lensprune.engine.memory import parse_memory

    parse_memory(size)


@dataclass(frozen=True, kw_only=True)
class Loading(Group):
    """How a model is loaded."""

    dtype: str | None = option(None, "float32, bfloat16, float16 or float64 (default: float32)", metavar="TYPE")
    device: str | None = option(None, "cpu, cuda, cuda:1, ... (default: a GPU if there is one)", metavar="DEVICE")
    bos: str | None = option(
        None,
        "BOS token at the start: tokenizer (as the tokenizer does), always or never (default: tokenizer)",
        metavar="POLICY",
        check=one_of(get_args(BosPolicy), "BOS policy"),
    )


@dataclass(frozen=True, kw_only=True)
class Splitting(Group):
    """A model on several GPUs."""

    n_devices: int | None = option(None, "split the model over N GPUs", metavar="N", parse=whole_number)


@dataclass(frozen=True, kw_only=True)
class Execution(Group):
    """How rows are run; results don't depend on it."""

    executor: str = option(
        "forked",
        lambda: (
            f"{in_words(executor_names())}, with the same results: forked is fast, hooked is the reference, "
            "forked-graphs is for GPUs and not measured yet"
        ),
        metavar="NAME",
    )
    batch_tokens: int | None = option(None, "tokens per batch", metavar="N", parse=whole_number, check=_check_batch)
    memory: str | None = option(
        None, "memory to use besides the model's weights, like 4GB", metavar="SIZE", check=_check_memory
    )


@dataclass(frozen=True, kw_only=True)
class Workers(Group):
    """How cells are distributed with ``--executor ray``."""

    workers: int | None = option(
        None,
        "number of workers with --executor ray (default: one per GPU, else one per CPU core)",
        metavar="N",
        parse=whole_number,
        check=between(1, MAX_WORKERS, "workers", "workers"),
    )
    ray_address: str | None = option(
        None,
        "running cluster for --executor ray, like ray://head:10001 or auto (default: start a local one)",
        metavar="ADDRESS",
    )


def executor_options(executor: str, workers: int | None = None, ray_address: str | None = None) -> dict[str, Any]:
    """Fields of `SweepOptions` for a requested executor: ``forked``, ``hooked``, ``ray`` or ``ray:hooked``.

    ``ray`` distributes the cells; the name after the colon is the executor that each worker runs, since only that
    determines the results.
    """
    backend, _, of_worker = executor.partition(":")
    if backend in BACKENDS:
        return {"executor": of_worker or "forked", "backend": backend, "workers": workers, "ray_address": ray_address}
    return {"executor": executor, "backend": None, "workers": workers, "ray_address": ray_address}
