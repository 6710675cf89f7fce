"""Numerical noise: items that the clean model answers differently in other batches, with another executor, in
float32."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool
from numpy import array, ndarray

from lensprune.ablation.variants import CLEAN
from lensprune.engine import make_executor
from lensprune.engine.base import Executor
from lensprune.models.base import HookedModel, ModelOrName
from lensprune.models.load import open_model
from lensprune.protocols import score_items
from lensprune.runs.noise import NOISE_COLUMNS, noise_table
from lensprune.runs.spec import SweepSpec
from lensprune.sweeps.answering import answers_of, rows_done
from lensprune.sweeps.conditions import Condition
from lensprune.sweeps.options import Loading, Splitting, SweepOptions, option_values
from lensprune.sweeps.prepare import SweepJob, prepare
from lensprune.sweeps.selection import VariantSelection
from lensprune.tasks.item_choice import DRAWN
from lensprune.terminal import WorkBar, work_bar

__all__ = ["HALF", "noise", "with_noise"]

logger = logging.getLogger("lensprune")

HALF = ("bfloat16", "float16")
"""Dtypes so coarse that the batch size changes answers."""
_OTHER_BATCHES = (256, 2048)
_EXECUTORS = ("forked", "hooked")
_FLOAT32_BYTES = 4
_GPU_SHARE = 0.8


def noise(
    model: ModelOrName,
    tasks: Sequence[str] | str,
    protocols: Sequence[str] | str = ("default",),
    *,
    limit: int | None = None,
    items: str = DRAWN,
    shots: int | None = None,
    seed: int = 0,
    data_dir: str | Path | None = None,
    leave_out_repeated: bool = False,
    primary_metric: str | None = None,
    chat_template: bool = False,
    template_date: str | None = None,
    template_args: Mapping[str, Any] | None = None,
    fewshot_as_multiturn: bool = False,
    system: str | None = None,
    keep_eos: bool = False,
    thinking: str = "auto",
    think_tokens: tuple[str, str] | None = None,
    thinking_budget: int | None = None,
    max_new_tokens: int | None = None,
    until: Sequence[str] = (),
    until_only: bool = False,
    generation_config: str = "model",
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    samples: int | None = None,
    dtype: str | None = None,
    device: str | None = None,
    n_devices: int | None = None,
    bos: str | None = None,
    executor: str = "forked",
    batch_tokens: int | None = None,
    memory: str | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Rerun the clean model in ways that should change nothing, and count the items that flip.

    The ways: other batch sizes, the other executor, and float32 (for a model given by name or path, if it fits on the
    GPU). Items that flip here can flip in a sweep even if the removed part is not needed.

    Args:
        model: a name or path for `load_model`, or a loaded model.

    The other arguments are those of `lensprune.sweep`.

    Returns:
        One row per (task, protocol, way): the columns `lensprune.runs.noise.NOISE_COLUMNS`.

    Raises:
        UserError: as `sweep`.

    Examples:
        >>> table = lp.noise("toy-distilled", "facts", "continuation", limit=4, dtype="bfloat16", progress=False)
        >>> table.columns[:6].tolist()
        ['task', 'protocol', 'way', 'n', 'lost', 'won']
    """
    options = SweepOptions.given(variants=VariantSelection(), **option_values(locals(), SweepOptions))
    job = prepare(model, options)
    runner = make_executor(options.executor, job.model, options.batch_tokens, options.memory)
    rows = _measured(job, runner, model, progress)
    return noise_table(replace(job.spec, execution=replace(job.spec.execution, noise=rows)))[list(NOISE_COLUMNS)]


def with_noise(
    job: SweepJob, executor: Executor, model: ModelOrName, existing: SweepSpec | None, progress: bool = True
) -> SweepJob:
    """The same sweep with its numerical noise in the spec, if it runs in half precision.

    Args:
        model: as given by the user.
        existing: spec of the run to resume, whose noise is reused.
    """
    if job.model.facts.dtype not in HALF:
        return job
    rows = existing.execution.noise if existing is not None else _measured(job, executor, model, progress)
    return replace(job, spec=replace(job.spec, execution=replace(job.spec.execution, noise=rows)))


def _measured(job: SweepJob, executor: Executor, model: ModelOrName, progress: bool) -> dict[str, dict[str, Any]]:
    """By task and protocol: the ids of the items lost and won in each of the other ways."""
    ways = list(_other_ways(job, executor, model))
    flips: dict[str, dict[str, Any]] = {}
    total = (1 + len(ways)) * sum(len(condition.requests) for condition in job.conditions)
    with work_bar({"": total}, shown=progress) as bar:
        for condition in job.conditions:
            task = condition.task.task.name
            bar.stage(f"noise of {task} {condition.protocol}")
            clean = _answered(executor, condition, bar)
            names = [of_item.item.id for of_item in condition.items]
            rows = {}
            for name, other in ways:
                changed = _answered(other, condition, bar)
                rows[name] = {
                    "lost": [item for item, flag in zip(names, clean & ~changed, strict=True) if flag],
                    "won": [item for item, flag in zip(names, ~clean & changed, strict=True) if flag],
                }
            flips.setdefault(task, {})[condition.protocol] = rows
    return flips


def _answered(executor: Executor, condition: Condition, bar: WorkBar) -> Bool[ndarray, " item"]:
    """Whether the clean model is right on each item."""
    [answered] = answers_of(condition.requests, [CLEAN], executor, rows_done(bar))
    outcomes = score_items(condition.task, condition.protocol, condition.items, answered.responses)
    return array([outcome.correct for outcome in outcomes], bool)


def _other_ways(job: SweepJob, executor: Executor, model: ModelOrName) -> Iterator[tuple[str, Executor]]:
    """Names and executors that should give the same results as `executor`."""
    options = job.options
    for tokens in _OTHER_BATCHES:
        if tokens != options.batch_tokens:
            yield f"batches of {tokens} tokens", make_executor(executor.name, job.model, tokens, options.memory)
    for name in _EXECUTORS:
        if name != executor.name:
            other = make_executor(name, job.model, options.batch_tokens, options.memory)
            if other.name == name:
                yield name, other
    full = None if job.model.facts.dtype == "float32" else _in_float32(job.model, model, options)
    if full is not None:
        yield "float32", make_executor(executor.name, full, options.batch_tokens, options.memory)


def _in_float32(hooked: HookedModel, model: ModelOrName, options: SweepOptions) -> HookedModel | None:
    """The model loaded again in float32; ``None``, with a warning, if that is not possible."""
    if not isinstance(model, (str, Path)):
        logger.warning("float32 is not compared: a loaded model can't be loaded again; give its name or path")
        return None
    device = torch.device(hooked.facts.device)
    if device.type == "cuda":
        needed = _FLOAT32_BYTES * sum(weight.numel() for weight in hooked.module.parameters())
        free = _GPU_SHARE * torch.cuda.mem_get_info(device)[0]
        if needed > free:
            logger.warning(
                f"float32 is not compared: the weights take {needed / 2**30:.1f} GiB, the GPU has "
                f"{free / 2**30:.1f} GiB to spare"
            )
            return None
    return open_model(model, **{**option_values(options, Loading, Splitting), "dtype": "float32"})
